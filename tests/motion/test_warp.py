import pytest
import torch

from lfdm.motion.warp import flow_to_grid, grid_to_flow, identity_grid, resize, warp


def test_identity_grids_in_both_conventions() -> None:
    corners = identity_grid(2, 3, corners=True)
    assert corners.tolist() == [[[-1, -1], [0, -1], [1, -1]], [[-1, 1], [0, 1], [1, 1]]]
    centres = identity_grid(2, 4, corners=False)
    assert centres[0].tolist() == [[-0.75, -0.5], [-0.25, -0.5], [0.25, -0.5], [0.75, -0.5]]


@pytest.mark.parametrize("corners", [True, False])
def test_grid_and_flow_are_inverse(corners: bool) -> None:
    flow = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    grid = flow_to_grid(flow, corners=corners)
    assert grid.shape == (2, 3, 4, 5, 2)
    torch.testing.assert_close(grid_to_flow(grid, corners=corners), flow)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 64), (32, 128)])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_pixel_centre_identity_gives_the_image_back_bit_for_bit(size: tuple[int, int], padding_mode: str) -> None:
    image = torch.rand(2, 3, *size)
    grid = identity_grid(*size, corners=False).expand(2, 4, *size, 2)
    assert torch.equal(warp(image, grid, padding_mode=padding_mode), image.unsqueeze(2).expand(-1, -1, 4, -1, -1))


def test_corner_identity_is_not_an_identity() -> None:
    """The published convention: pixel i reads i * W / (W - 1) - 0.5."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    warped = warp(ramp, identity_grid(8, 8, corners=True)[None, None], padding_mode="border")
    expected = (torch.arange(8) * 8 / 7 - 0.5).clamp(0, 7)
    torch.testing.assert_close(warped[0, 0, 0, 3], expected)


def test_flow_is_backward_in_half_images_x_first() -> None:
    image = torch.rand(1, 2, 8, 16)
    flow = torch.zeros(1, 2, 1, 8, 16)
    flow[:, 0] = 3 * 2 / 16  # 3 pixels to the right
    flow[:, 1] = -2 * 2 / 8  # 2 pixels up
    moved = warp(image, flow_to_grid(flow, corners=False), padding_mode="zeros")[:, :, 0]
    expected = torch.zeros_like(image)
    expected[:, :, 2:, :-3] = image[:, :, :-2, 3:]
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


def test_frames_are_warped_independently() -> None:
    image, grid = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 6, 2) * 2 - 1
    whole = warp(image, grid, padding_mode="zeros")
    assert whole.shape == (2, 3, 5, 4, 6)
    for t in range(5):
        assert torch.equal(whole[:, :, t : t + 1], warp(image, grid[:, t : t + 1], padding_mode="zeros"))


def test_warp_samples_in_float32_and_keeps_the_dtype() -> None:
    image = torch.rand(1, 1, 4, 256)
    grid = identity_grid(4, 256, corners=False)[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        warped = warp(image.bfloat16(), grid, padding_mode="zeros")
    assert warped.dtype == torch.bfloat16
    assert torch.equal(warped[:, :, 0], image.bfloat16())


def test_resize_is_linear_between_pixel_centres_and_skips_equal_sizes() -> None:
    x = torch.tensor([0.0, 4.0]).expand(1, 1, 1, 1, 2)
    assert resize(x, (1, 4)).flatten().tolist() == [0, 1, 3, 4]
    assert resize(x, (1, 2)) is x


@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_coordinates_that_are_not_finite_give_nan_and_harm_nothing_else(padding_mode: str, value: float) -> None:
    """On a CPU torch's own gradient there ends the process: a diverged training must be able to say so."""
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    grid = identity_grid(8, 8, corners=False).repeat(2, 1, 1, 1, 1)
    grid[0, 0, 2, 3, 0] = value
    grid.requires_grad_()
    result = warp(x, grid, padding_mode=padding_mode)
    result.nan_to_num(0).sum().backward()
    lost = torch.zeros(2, 3, 1, 8, 8, dtype=torch.bool)
    lost[0, :, :, 2, 3] = True
    assert torch.equal(result.isnan(), lost)
    torch.testing.assert_close(result[~lost], x.unsqueeze(2)[~lost])
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
