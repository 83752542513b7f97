import pytest
import torch

from lfdm.models.dense import DenseMotionPredictor


def make_predictor(stride: int) -> DenseMotionPredictor:
    torch.manual_seed(0)
    return DenseMotionPredictor(channels=(8, 8, 16, 16), stride=stride, match_channels=8, max_residual=0.6)


def set_bias(head: torch.nn.Conv2d, values: list[float]) -> None:
    assert head.bias is not None
    head.bias.copy_(torch.tensor(values))


@pytest.mark.parametrize("stride", [2, 4])
def test_training_starts_at_the_identity_exactly(stride: int) -> None:
    motion = make_predictor(stride)(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 3, 32, 32)).motion
    assert not motion.corners
    assert torch.equal(motion.flow, torch.zeros(2, 2, 3, 32 // stride, 32 // stride))
    visible = torch.sigmoid(torch.tensor(3.0))
    assert torch.equal(motion.occlusion, visible.expand(2, 1, 3, 32 // stride, 32 // stride))


@pytest.mark.parametrize("stride", [2, 4])
def test_every_parameter_learns_after_the_first_step(stride: int) -> None:
    predictor = make_predictor(stride)
    heads = [predictor.coarse_head, *([predictor.fine_head] if stride == 2 else [])]
    with torch.no_grad():
        for head in heads:
            head.weight.normal_(std=0.1)
    dense = predictor(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 2, 32, 32))
    loss = dense.motion.flow.square().sum() + dense.motion.occlusion.sum()
    loss = loss + (dense.matched - dense.match_target).abs().sum()
    loss.backward()
    silent = [name for name, p in predictor.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_sharp_matching_finds_every_cell_of_a_still_clip() -> None:
    predictor = make_predictor(4)
    with torch.no_grad():
        predictor.match_log_scale.fill_(12.0)
        set_bias(predictor.coarse_head, [1.0, 0.0, 0.0, 0.0])  # the matched flow, nothing added
        source = torch.rand(2, 3, 32, 32)
        dense = predictor(source, source.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(dense.matched, dense.match_target, atol=1e-3, rtol=0)
    torch.testing.assert_close(dense.motion.flow, torch.zeros_like(dense.motion.flow), atol=1e-3, rtol=0)


def test_sharp_matching_finds_a_shift() -> None:
    """A frame moved right by one cell (4 pixels) is found one cell to the left, away from the edges."""
    predictor = make_predictor(4)
    with torch.no_grad():
        predictor.match_log_scale.fill_(12.0)
        set_bias(predictor.coarse_head, [1.0, 0.0, 0.0, 0.0])
        predictor.eval()
        source = torch.rand(1, 3, 64, 64)
        flow = predictor(source, source.roll(4, dims=3).unsqueeze(2)).motion.flow[0, :, 0, 3:-3, 4:-3]
    expected = torch.zeros_like(flow)
    expected[0] = -4 * 2 / 64
    torch.testing.assert_close(flow, expected, atol=1e-2, rtol=0)


def test_frames_and_samples_do_not_influence_each_other() -> None:
    predictor = make_predictor(2)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        source, driving = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 2, 32, 32)
        whole = predictor(source, driving).motion
        alone = predictor(source[1:], driving[1:, :, 1:]).motion
    torch.testing.assert_close(whole.flow[1:, :, 1:], alone.flow, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.occlusion[1:, :, 1:], alone.occlusion, atol=1e-4, rtol=0)


def test_an_unbuildable_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="stride 2 or 4"):
        make_predictor(8)
    with pytest.raises(ValueError, match="at least 4 widths"):
        DenseMotionPredictor(channels=(8, 8, 8), stride=4, match_channels=8, max_residual=0.6)
