import torch

from lfdm.motion.instants import instants, interpolation


def test_instants_go_from_first_to_last_frame() -> None:
    assert instants(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert instants(1).tolist() == [0]


def test_interpolation_passes_through_the_knots_and_reproduces_parabolas() -> None:
    torch.testing.assert_close(interpolation(instants(7), 7), torch.eye(7).double(), atol=1e-12, rtol=0)
    knots, tau = instants(9), torch.rand(50, dtype=torch.float64)
    parabola = 1 - 2 * knots + 3 * knots**2
    torch.testing.assert_close(interpolation(tau, 9) @ parabola, 1 - 2 * tau + 3 * tau**2)
