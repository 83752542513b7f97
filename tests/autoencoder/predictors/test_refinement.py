import pytest
import torch
import torch.nn.functional as F

from lfdm.autoencoder.predictors.refinement import OFFSETS, FlowState, LocalRefinement, correlate


def make_refinement() -> LocalRefinement:
    torch.manual_seed(0)
    return LocalRefinement(8, carried=8, compared=8)


def still(size: tuple[int, int], n: int = 1) -> FlowState:
    return FlowState(torch.zeros(n, 2, *size), torch.zeros(n, 1, *size), torch.zeros(n, 8, *size))


def test_an_untrained_refinement_only_doubles_the_flow() -> None:
    state = FlowState(torch.full((2, 2, 4, 6), 0.25), torch.full((2, 1, 4, 6), 1.5), torch.randn(2, 8, 4, 6))
    with torch.no_grad():
        finer = make_refinement()(state, torch.randn(1, 8, 8, 12), torch.randn(2, 8, 8, 12))
    assert torch.equal(finer.flow, torch.full((2, 2, 8, 12), 0.25))
    assert torch.equal(finer.occlusion, torch.full((2, 1, 8, 12), 1.5))


@pytest.mark.parametrize("shift", [(2, 0), (-1, 2), (0, -2)])
@torch.no_grad()
def test_local_matches_find_a_shift_within_the_window(shift: tuple[int, int]) -> None:
    refinement = make_refinement()
    refinement.log_scale.fill_(6.0)
    refinement.get_parameter("head.bias")[0] = 1.0
    source = torch.randn(1, 8, 16, 24)
    driving = source.roll((-shift[1], -shift[0]), dims=(2, 3))  # a cell shows what the source shows `shift` away
    flow = refinement(still((8, 12)), source, driving).flow[:, :, 4:-4, 4:-4]
    expected = torch.tensor([shift[0] * 2 / 24, shift[1] * 2 / 16]).view(1, 2, 1, 1)
    torch.testing.assert_close(flow, expected.expand_as(flow), atol=1e-3, rtol=0)


@torch.no_grad()
def test_correlation_equals_unfolded_inner_products() -> None:
    queries, targets = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    windows = F.unfold(F.pad(targets, (2,) * 4, mode="replicate"), 5).view(2, 3, len(OFFSETS), 5, 7)
    expected = (queries.unsqueeze(2) * windows).sum(1)
    torch.testing.assert_close(correlate(queries, targets), expected)
