import pytest
import torch
from torch import Tensor

from lfdm.errors import UserError
from lfdm.motion.time_basis import instants
from lfdm.motion.trajectories import Trajectories, TrajectoryBasis

SIZE = (16, 16)


def moving_square(num_frames: int = 16) -> tuple[Trajectories, Tensor, Tensor]:
    """Return a square of 4x4 cells that moves right by 4 cells, its mask (1, 1, h, w), and the visibility of what it covers."""
    figure = torch.zeros(1, 1, *SIZE)
    figure[..., 6:10, 4:8] = 1
    shift = instants(num_frames).float().square().view(1, 1, -1, 1, 1) * 4 * 2 / SIZE[1]
    displacement = torch.cat((shift * figure.unsqueeze(2), torch.zeros(1, 1, num_frames, *SIZE)), dim=1)
    visibility = torch.ones(1, 1, num_frames, *SIZE)
    for column in range(8, 12):  # background in front of the square is covered one column after the other
        covered = shift.flatten() * SIZE[1] / 2 > column - 8 + 0.5
        visibility[:, :, covered, 6:10, column] = 0
    return Trajectories(displacement, visibility), figure, visibility


@pytest.fixture
def basis() -> TrajectoryBasis:
    trajectories, *_ = moving_square()
    return TrajectoryBasis.from_trajectories(lambda: [trajectories], 2, 4)


def test_coefficients_hold_displacement_visibility_and_priority(basis: TrajectoryBasis) -> None:
    trajectories, figure, visibility = moving_square()
    coefficients = basis.fit(trajectories, figure)
    assert coefficients.shape == (1, basis.num_channels, *SIZE) == (1, 2 * 2 + 4 + 1, *SIZE)
    assert torch.equal(coefficients[:, -1:], figure)
    found = basis.trajectories(coefficients, instants(16))
    torch.testing.assert_close(found.displacement, trajectories.displacement, atol=5e-3, rtol=0)
    assert ((found.visibility > 0.5) == (visibility > 0.5)).float().mean() > 0.99


def test_lengths_agree_at_shared_instants_and_frame_0_is_exact(basis: TrajectoryBasis) -> None:
    trajectories, figure, _ = moving_square()
    coefficients = basis.fit(trajectories, figure)
    short, long = (basis.motion(coefficients, n, SIZE) for n in (16, 31))
    torch.testing.assert_close(short.flow, long.flow[:, :, ::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(short.occlusion, long.occlusion[:, :, ::2], atol=1e-5, rtol=0)
    assert not short.flow[:, :, 0].any()
    assert torch.equal(short.occlusion[:, :, 0], torch.ones(1, 1, *SIZE))


def test_backward_flow_of_a_moving_square(basis: TrajectoryBasis) -> None:
    """At the end the square is 4 cells to the right: it shows the square there, and a hole that nothing lands in behind it."""
    trajectories, figure, _ = moving_square()
    motion = basis.motion(basis.fit(trajectories, 8 * figure), 16, SIZE)
    flow, occlusion = motion.flow[0, 0, -1], motion.occlusion[0, 0, -1]
    torch.testing.assert_close(flow[7:9, 9:11], torch.full((2, 2), -4 * 2 / 16), atol=1e-2, rtol=0)
    assert flow[:4].abs().max() < 1e-3
    assert occlusion[7:9, 5:7].max() < 0.1
    assert occlusion[7:9, 9:11].min() > 0.8


def test_priority_decides_where_the_square_covers_the_background(basis: TrajectoryBasis) -> None:
    trajectories, figure, _ = moving_square()
    seen = Trajectories(trajectories.displacement, torch.ones_like(trajectories.visibility))
    middles = [basis.motion(basis.fit(seen, p * figure), 16, SIZE).flow[0, 0, -1, 7:9, 9:11].mean().item() for p in (8, 0, -8)]
    assert middles[0] == pytest.approx(-0.5, abs=0.02)
    assert -0.4 < middles[1] < -0.1
    assert middles[2] == pytest.approx(0, abs=0.02)


def test_doubling_does_not_mix_cells_that_move_differently(basis: TrajectoryBasis) -> None:
    trajectories, figure, _ = moving_square()
    fine = basis.double(basis.fit(trajectories, figure))
    assert fine.shape[-2:] == (32, 32)
    ends = basis.trajectories(fine, instants(2)).displacement[0, 0, -1]
    assert (torch.minimum(ends.abs(), (ends - 0.5).abs()) < 0.01).all()


def test_gradients_reach_all_coefficients(basis: TrajectoryBasis) -> None:
    trajectories, figure, _ = moving_square()
    coefficients = basis.fit(trajectories, figure).requires_grad_()
    motion = basis.motion(coefficients, 8, SIZE)
    (motion.flow.square().mean() + motion.occlusion.mean()).backward()
    assert coefficients.grad is not None
    assert (coefficients.grad.abs().amax((0, 2, 3)) > 0).sum() >= basis.num_channels - 2  # nothing moves in y


def test_shapes_are_checked() -> None:
    with pytest.raises(UserError, match="displacement"):
        Trajectories(torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 1, 4, 8, 8))
    with pytest.raises(UserError, match="visibility"):
        Trajectories(torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 1, 3, 8, 8))
