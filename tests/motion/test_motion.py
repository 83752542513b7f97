import json
from pathlib import Path

import pytest
import torch

from lfdm.errors import UserError
from lfdm.motion.motion import FILE_FORMAT, Motion
from lfdm.motion.warp import identity_grid


def random_motion(*, corners: bool, frames: int = 3) -> Motion:
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(2, 2, frames, 4, 8, generator=generator)
    return Motion(flow, torch.rand(2, 1, frames, 4, 8, generator=generator), corners)


@pytest.mark.parametrize("corners", [True, False])
def test_grid_round_trip(corners: bool) -> None:
    motion = random_motion(corners=corners)
    back = Motion.from_grid(motion.grid(), motion.occlusion, corners=corners)
    torch.testing.assert_close(back.flow, motion.flow)
    assert back.occlusion is motion.occlusion
    assert back.corners == corners


@pytest.mark.parametrize("corners", [True, False])
def test_identity_samples_the_identity_grid(corners: bool) -> None:
    motion = Motion.identity(2, 3, (4, 8), corners=corners)
    assert torch.equal(motion.grid(), identity_grid(4, 8, corners=corners).expand(2, 3, 4, 8, 2))
    assert (motion.occlusion == 1).all()


def test_from_grid_accepts_one_frame_without_time() -> None:
    motion = Motion.from_grid(torch.zeros(2, 4, 8, 2), torch.ones(2, 1, 4, 8), corners=True)
    assert (motion.num_frames, motion.size, motion.flow.shape) == (1, (4, 8), (2, 2, 1, 4, 8))


@pytest.mark.parametrize(
    ("flow", "occlusion"),
    [((2, 2, 3, 4, 8), (2, 1, 3, 4, 4)), ((2, 3, 3, 4, 8), (2, 1, 3, 4, 8)), ((2, 2, 4, 8), (2, 1, 4, 8))],
)
def test_shapes_that_do_not_belong_together_are_refused(flow: tuple[int, ...], occlusion: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="flow must be"):
        Motion(torch.zeros(flow), torch.zeros(occlusion))


def test_a_grid_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match="grid must be"):
        Motion.from_grid(torch.zeros(1, 2, 4, 8), torch.ones(1, 1, 4, 8), corners=False)


def test_resize_keeps_no_motion_still_with_pixel_centres() -> None:
    resized = Motion.identity(1, 2, (4, 4), corners=False).resize((16, 16))
    assert torch.equal(resized.flow, torch.zeros(1, 2, 2, 16, 16))
    assert torch.equal(resized.occlusion, torch.ones(1, 1, 2, 16, 16))


def test_resize_interpolates_the_absolute_grid_with_corners() -> None:
    """Resizing the identity grid of 2 cells clamps at the outer quarter: not the identity of 4 cells."""
    grid = Motion.identity(1, 1, (2, 2), corners=True).resize((4, 4)).grid()
    torch.testing.assert_close(grid[0, 0, 0, :, 0], torch.tensor([-1.0, -0.5, 0.5, 1.0]))


def test_resize_to_the_same_size_is_the_motion_itself() -> None:
    motion = random_motion(corners=True)
    assert motion.resize(motion.size) is motion


def test_frames_and_concatenate_are_inverse() -> None:
    motion = random_motion(corners=True)
    joined = Motion.concatenate([motion.frames(0, 1), motion.frames(1, 3)], dim=2)
    assert torch.equal(joined.flow, motion.flow)
    assert torch.equal(joined.occlusion, motion.occlusion)
    assert joined.corners
    assert Motion.concatenate([motion, motion], dim=0).flow.shape[0] == 4


def test_conventions_cannot_be_concatenated() -> None:
    with pytest.raises(UserError, match="corners must be the same"):
        Motion.concatenate([random_motion(corners=True), random_motion(corners=False)], dim=2)


def test_to_keeps_the_convention() -> None:
    half = random_motion(corners=True).to(torch.float16)
    assert (half.flow.dtype, half.occlusion.dtype, half.corners) == (torch.float16, torch.float16, True)


@pytest.mark.parametrize("corners", [False, True])
def test_a_closed_motion_eases_into_its_first_frame(corners: bool) -> None:
    motion = random_motion(corners=corners, frames=8)
    for given in (motion, motion.scaled(0.5)):  # the second with an offset, where corners has one
        closed = given.closed(3)
        assert torch.equal(closed.frames(0, 5).flow, given.frames(0, 5).flow)
        assert torch.equal(closed.frames(0, 5).occlusion, given.frames(0, 5).occlusion)
        for left, share in ((1, 0.146447), (2, 0.5), (3, 0.853553)):
            first, last, eased = given.frames(0, 1), given.frames(8 - left, 9 - left), closed.frames(8 - left, 9 - left)
            torch.testing.assert_close(eased.flow - first.flow, share * (last.flow - first.flow), atol=1e-5, rtol=1e-4)
            difference = eased.occlusion - first.occlusion
            torch.testing.assert_close(difference, share * (last.occlusion - first.occlusion), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 3])
def test_closing_needs_fewer_frames_than_there_are(count: int) -> None:
    with pytest.raises(UserError, match=f"count must be from 1 to 2, all frames but the first; got {count}"):
        random_motion(corners=False, frames=3).closed(count)


def test_motions_compare_by_identity() -> None:
    motion = random_motion(corners=True)
    assert motion == motion
    assert motion != random_motion(corners=True)
    assert len({motion, motion}) == 1


def test_a_motion_of_zeros_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    frames = 10**7
    size = 16 * 16 * 4 * frames
    header = {
        "__metadata__": {"format": FILE_FORMAT, "corners": "false", "shape": f"1 {frames} 16 16"},
        "flow": {"dtype": "F32", "shape": [1, 2, frames, 16, 16], "data_offsets": [0, 2 * size]},
        "occlusion": {"dtype": "F32", "shape": [1, 1, frames, 16, 16], "data_offsets": [2 * size, 3 * size]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "zeros.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + 3 * size)
    with pytest.raises(UserError, match=r"zeros\.safetensors holds no valid motion"):
        Motion.load(tmp_path / "zeros.safetensors")
