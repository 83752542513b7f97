import torch
from torch import Tensor

from lfdm.motion.splatting import Splat, softmax_splat
from lfdm.motion.warp import flow_to_grid, identity_grid, warp


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def splat_by(values: Tensor, flow: Tensor, priority: Tensor | None = None) -> Splat:
    priority = torch.zeros_like(values[:, :1]) if priority is None else priority
    return softmax_splat(values, flow_to_grid(flow, corners=False), priority, (values.shape[-2], values.shape[-1]))


def test_no_motion_returns_the_values_bit_for_bit_and_covers_everything() -> None:
    values = random(2, 3, 4, 16, 32)
    splat = splat_by(values, torch.zeros(2, 2, 4, 16, 32))
    assert torch.equal(splat.mean, values)
    assert torch.equal(splat.coverage, torch.ones(2, 1, 4, 16, 32))


def test_whole_shifts_are_exact_and_leave_holes() -> None:
    """Two columns to the right and one row up, in half images; a frame of its own shift each."""
    values = random(1, 2, 2, 8, 16)
    flow = torch.zeros(1, 2, 2, 8, 16)
    flow[:, 0, 0], flow[:, 1, 1] = 2 * 2 / 16, -1 * 2 / 8
    splat = splat_by(values, flow)
    assert torch.equal(splat.mean[:, :, 0, :, 2:], values[:, :, 0, :, :-2])
    assert torch.equal(splat.mean[:, :, 1, :-1], values[:, :, 1, 1:])
    assert not splat.coverage[:, :, 0, :, :2].any()
    assert not splat.mean[:, :, 0, :, :2].any()
    assert torch.equal(splat.coverage[:, :, 1, :-1], torch.ones(1, 1, 7, 16))


def test_it_is_the_adjoint_of_warping() -> None:
    """<splat(a), b> = <a, warp(b)> where all weights are equal and nothing leaves the image."""
    a, b, flow = (
        random(1, 1, 1, 8, 8).double(),
        random(1, 1, 8, 8, seed=1).double(),
        0.02 * random(1, 2, 1, 8, 8, seed=2).double(),
    )
    flow[..., [0, -1], :], flow[..., [0, -1]] = 0, 0
    grid = flow_to_grid(flow, corners=False)
    splat = softmax_splat(a, grid, torch.zeros_like(a), (8, 8))
    warped = warp(b.float(), grid.float(), padding_mode="zeros")
    torch.testing.assert_close((splat.mean * splat.coverage * b.unsqueeze(2)).sum(), (a * warped).sum(), atol=1e-5, rtol=1e-5)


def test_priority_decides_who_is_in_front_and_equal_priorities_share() -> None:
    values = torch.tensor([1.0, 5.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)
    flow = torch.zeros(1, 2, 1, 1, 4)
    flow[..., 0, 0] = 2 / 4  # the first cell's value moves onto the second
    flow[:, 1] = 0
    means = [
        splat_by(values, flow, torch.tensor([p, 0.0, 0.0, 0.0]).view(1, 1, 1, 1, 4)).mean[0, 0, 0, 0, 1] for p in (0, 20, -20)
    ]
    torch.testing.assert_close(torch.stack(means), torch.tensor([3.0, 1.0, 5.0]))


def test_hidden_cells_neither_win_nor_cover() -> None:
    values, visibility = torch.tensor([1.0, 5.0]).view(1, 1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)
    grid = identity_grid(1, 2, corners=False)[None, None]
    splat = softmax_splat(values, grid, torch.zeros_like(values), (1, 2), visibility=visibility)
    assert splat.mean.flatten().tolist() == [1, 0]
    assert splat.coverage.flatten().tolist() == [1, 0]


def test_values_can_be_splatted_to_another_size() -> None:
    values = torch.full((1, 1, 1, 8, 8), 3.0)
    splat = softmax_splat(values, identity_grid(8, 8, corners=False)[None, None], torch.zeros_like(values), (4, 4))
    torch.testing.assert_close(splat.mean, torch.full((1, 1, 1, 4, 4), 3.0))
    torch.testing.assert_close(splat.coverage[..., 1:-1, 1:-1], torch.full((1, 1, 1, 2, 2), 4.0))  # four cells each


def test_gradients_of_values_positions_priority_and_visibility() -> None:
    values, flow, priority = (random(1, c, 2, 3, 4, seed=c).double() for c in (3, 2, 1))
    grid = flow_to_grid(0.2 * flow, corners=False)
    visibility = torch.sigmoid(random(1, 1, 2, 3, 4, seed=9).double())
    inputs = tuple(x.detach().requires_grad_() for x in (values, grid, priority, visibility))

    def splat(values: Tensor, grid: Tensor, priority: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor]:
        found = softmax_splat(values, grid, priority, (3, 4), visibility=visibility)
        return found.mean, found.coverage

    assert torch.autograd.gradcheck(splat, inputs)


def test_every_sample_and_frame_is_splatted_by_itself() -> None:
    values, flow, priority = (random(3, c, 4, 8, 8, seed=c) for c in (3, 2, 1))
    together = splat_by(values, 0.3 * flow, priority)
    # the largest priority of a clip is the reference of its weights: rounding differs by frame
    apart = splat_by(values[1:2, :, 2:3], 0.3 * flow[1:2, :, 2:3], priority[1:2, :, 2:3])
    torch.testing.assert_close(apart.mean, together.mean[1:2, :, 2:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart.coverage, together.coverage[1:2, :, 2:3])


def test_what_the_backward_pass_needs_is_linear_in_the_number_of_cells() -> None:
    def saved(side: int) -> int:
        count = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal count
            count += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            splat_by(random(1, 2, 4, side, side).requires_grad_(), 0.2 * random(1, 2, 4, side, side))
        return count

    assert 3.9 < saved(32) / saved(16) < 4.1
