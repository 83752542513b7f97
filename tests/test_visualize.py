from typing import Any, get_args

import numpy as np
import pytest
import torch

from lfdm.config.video import PanelKind
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.visualize import (
    contact_sheet,
    draw_arrows,
    draw_flow_legend,
    draw_panel,
    draw_warped_grid,
    flow_scale,
    flow_to_color,
    in_half_widths,
    occlusion_to_gray,
    overlay_occlusion,
    overlay_regions,
)


def constant_flow(x: float, y: float, size: int = 4) -> np.ndarray:
    return np.full((size, size, 2), (x, y), np.float64)


def test_no_flow_is_white_and_direction_is_hue() -> None:
    assert (flow_to_color(constant_flow(0, 0)) == 255).all()
    assert flow_to_color(constant_flow(1, 0))[0, 0].tolist() == [255, 0, 0]
    assert flow_to_color(constant_flow(-1, 0))[0, 0].tolist() == [0, 255, 255]
    assert (flow_to_color(constant_flow(0, 1))[0, 0] != flow_to_color(constant_flow(0, -1))[0, 0]).any()


def test_length_is_saturation_on_the_given_scale() -> None:
    half = flow_to_color(constant_flow(0.5, 0), max_flow=1.0)[0, 0].tolist()
    assert half == [255, 128, 128]
    assert flow_to_color(constant_flow(5, 0), max_flow=1.0)[0, 0].tolist() == [255, 0, 0]


def test_colours_and_lines_of_a_rectangle_are_those_of_its_pixels() -> None:
    """The same motion in pixels has the same colour in every shape, and lines of the grid are equally far apart."""
    shapes = [(32, 32), (32, 64), (64, 32)]
    flows = [np.full((*size, 2), (2 * 6 / size[1], 2 * 3 / size[0])) for size in shapes]  # 6 and 3 pixels
    colours = [
        flow_to_color(in_half_widths(flow, size), max_flow=2 * 9 / size[1])[0, 0].tolist()
        for flow, size in zip(flows, shapes, strict=True)
    ]
    assert colours[0] == colours[1] == colours[2]
    grid = draw_warped_grid(np.full((32, 64, 3), 255, np.uint8), np.zeros((32, 64, 2)), num_lines=4)
    dark = (grid[..., 0] < 255).sum
    assert (dark(axis=1).min(), dark(axis=0).min()) == (2 * 8, 2 * 4)  # lines every 8 pixels, each on the border of two


def test_a_panel_of_rectangles_names_the_rim_in_pixels() -> None:
    frames = np.full((2, 16, 32, 3), 90, np.uint8)
    flow = torch.zeros(1, 2, 2, 8, 16)
    flow[:, 1] = 2 * 4 / 16  # 4 pixels down
    panel = next(draw_panel(None, frames, frames, Motion(flow, torch.ones(1, 1, 2, 8, 16)), kinds=["flow", "arrows"]))
    assert panel.shape == (16 + 6 * 16, 2 * 6 * 32 + 4, 3)
    assert flow_scale(in_half_widths(flow[0].permute(1, 2, 3, 0).numpy(), (16, 32))) * 32 / 2 == pytest.approx(4)


def test_captions_of_narrow_frames_do_not_overlap() -> None:
    frames = np.full((1, 112, 64, 3), 90, np.uint8)
    panel = next(draw_panel(None, frames, frames, Motion.identity(1, 1, (56, 32), corners=False), kinds=["flow", "occlusion"]))
    assert panel.shape == (16 + 224, 128 + 4 + 128, 3)
    assert (panel[:16, 100:132] == 255).all()  # white after the first caption


def test_tiles_of_large_frames_are_reduced() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 600, 1200, 3), dtype=np.uint8)
    motion = Motion.identity(1, 1, (8, 8), corners=False)
    panel = next(draw_panel(frames[0], frames, frames, motion))
    assert panel.shape == (16 + 256, 5 * 512 + 4 * 4, 3)
    assert abs(panel[16:, :512].mean() - frames.mean()) < 1


def test_a_warped_grid_moves_against_the_backward_flow() -> None:
    white = np.full((64, 64, 3), 255, np.uint8)

    def dark_columns(flow_pixels: float) -> np.ndarray:
        picture = draw_warped_grid(white, constant_flow(2 * flow_pixels / 64, 0, 64), num_lines=4)
        return np.flatnonzero(picture[4, :, 0] < 255)

    still = dark_columns(0)
    assert len(still) == 8  # four lines, each on the border of two pixels
    assert set(dark_columns(3)) == set((still - 3) % 64)  # pixel p shows source p + 3: the line at 16 appears at 13
    assert (draw_warped_grid(white, constant_flow(0, 0, 64), opacity=0) == 255).all()


def test_occlusion_is_white_where_visible() -> None:
    assert occlusion_to_gray(np.array([[0.0, 1.0, 2.0]]))[0, :, 0].tolist() == [0, 255, 255]


def test_a_panel_shows_source_frames_warped_flow_and_occlusion() -> None:
    source, frames, warped = (
        np.full(shape, value, np.uint8) for shape, value in (((32, 32, 3), 10), ((2, 32, 32, 3), 90), ((2, 32, 32, 3), 170))
    )
    motion = Motion(torch.zeros(1, 2, 2, 16, 16), torch.zeros(1, 1, 2, 16, 16))
    panel = np.stack(list(draw_panel(source, frames, warped, motion)))
    t, height, width, _ = panel.shape
    assert (t, height) == (2, 16 + 192)
    centres = [192 // 2 + i * (192 + 4) for i in range(5)]
    assert panel[0, height - 96, centres[:3], 0].tolist() == [10, 90, 170]
    assert panel[0, height - 96, centres[4], 0] == 0
    flow_tile = panel[1, 16:, centres[2] + 96 + 4 : centres[3] + 96]
    assert flow_tile.shape == (192, 192, 3)
    plain = flow_tile[:-48, :-48]
    assert {255} < set(np.unique(plain)) <= {178, 179, 255}  # no flow: white, with the lines of a straight grid
    assert len(np.unique(flow_tile[-48:, -48:].reshape(-1, 3), axis=0)) > 500  # the legend
    assert width == 5 * 192 + 4 * 4
    assert panel[0, :16].min() < 100  # captions


def test_the_legend_has_the_colour_of_every_direction() -> None:
    gray = np.full((64, 64, 3), 99, np.uint8)
    drawn = draw_flow_legend(gray, side=32)
    assert (drawn[:32] == 99).all()
    assert (drawn[32, 32] == 99).all()  # the corner of the square around the wheel
    right, left, centre = (drawn[48, x].astype(int) for x in (60, 36, 48))
    for found, flow in ((right, (0.8, 0.03)), (left, (-0.72, 0.03)), (centre, (0.03, 0.03))):
        assert np.abs(found - flow_to_color(constant_flow(*flow), max_flow=1.0)[0, 0]).max() < 12
    assert draw_flow_legend(gray[:16, :16], side=32).shape == (16, 16, 3)


def test_arrows_point_where_things_go() -> None:
    """Backward flow to the left: things came from the left; the head, which is broad, is at the pixel itself."""
    white = np.full((64, 64, 3), 255, np.uint8)
    assert (draw_arrows(white, constant_flow(0.06, 0, 64)) == 255).all()  # 1.9 pixels
    drawn = draw_arrows(white, constant_flow(-2 * 12 / 64, 0, 64), spacing=32)
    rows, columns = np.nonzero(drawn[..., 0] < 255)
    assert set(rows[columns < 16]) <= set(range(12, 21)) | set(range(44, 53))
    assert (drawn[16, 5:17, 0] == 0).all()  # from x = 4 to 16
    assert (drawn[16, 18:35, 0] == 255).all()
    assert (drawn[14:19, 12, 0] == 0).sum() > (drawn[14:19, 7, 0] == 0).sum()
    for y, x in ((16, 16), (16, 48), (48, 16), (48, 48)):  # one at every place, all alike
        assert np.array_equal(drawn[y - 4 : y + 5, x - 12 : x + 1], drawn[12:21, 4:17])


def test_overlays_tint_what_is_painted_and_give_regions_hues() -> None:
    gray = np.full((4, 4, 3), 100, np.uint8)
    occlusion = np.ones((4, 4))
    occlusion[0] = 0
    tinted = overlay_occlusion(gray, occlusion, opacity=0.5)
    assert tinted[0, 0].tolist() == [178, 50, 178]
    assert (tinted[1:] == 100).all()
    heat = np.zeros((2, 4, 4))
    heat[0, 0], heat[1, 3] = 1, 1
    shown = overlay_regions(gray, heat, opacity=1.0)
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[3, 0].tolist() == [0, 255, 255]
    assert (shown[1:3] == 100).all()


@pytest.mark.parametrize("kind", get_args(PanelKind))
def test_every_tile_can_be_drawn_by_itself(kind: PanelKind) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    motion = Motion(0.3 * torch.randn(1, 2, 2, 16, 16), torch.rand(1, 1, 2, 16, 16))
    regions = np.random.default_rng(1).random((2, 3, 16, 16))
    panel = np.stack(list(draw_panel(frames[0], frames, frames, motion, kinds=(kind,), regions=regions)))
    assert panel.shape == (2, 16 + 192, 192, 3)
    assert kind == "source" or (panel[0] != panel[1]).any()


def test_tiles_that_cannot_be_drawn() -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    motion = Motion.identity(1, 2, (16, 16), corners=False)
    wrong: list[tuple[Any, str]] = [
        (("source",), "needs the source image"),
        (("regions",), "needs heat maps"),
        (("flows",), "some of source, generated, .*; got 'flows'"),
        ((), "got none"),
    ]
    for kinds, message in wrong:
        with pytest.raises(UserError, match=message):
            draw_panel(None, frames, frames, motion, kinds=kinds)


def test_a_panel_needs_shapes_that_agree() -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    motion = Motion(torch.zeros(2, 2, 2, 16, 16), torch.zeros(2, 1, 2, 16, 16))
    with pytest.raises(UserError, match=r"\(2, 2, 2, 16, 16\)"):
        draw_panel(frames[0], frames, frames, motion)


def test_a_contact_sheet_has_a_row_per_video_and_shows_first_and_last_frame() -> None:
    video = np.stack([np.full((64, 64, 3), value, np.uint8) for value in range(0, 200, 10)])
    sheet = contact_sheet([video, video[:3]], ["wave: real", "generated"], num_frames=4)
    assert sheet.shape == (2 * (16 + 64 + 4), 4 * 64 + 3 * 4, 3)
    assert sheet[40, 10, 0] == 0
    assert sheet[40, -10, 0] == 190
    assert sheet[40 + 84, 2 * 68 + 10, 0] == 20
    assert sheet[40 + 84, -10, 0] == 255
    with pytest.raises(UserError, match="1 videos and 0 captions"):
        contact_sheet([video], [])


def test_the_scale_of_flow_is_not_set_by_a_stray_pixel() -> None:
    flow = np.zeros((4, 32, 32, 2), np.float32)
    assert flow_scale(flow) == 0
    flow[:, 8:24, 8:24, 0] = 0.2
    assert flow_scale(flow) == pytest.approx(0.2)
    flow[0, 0, 0] = 2.0
    assert flow_scale(flow) == pytest.approx(0.2)
