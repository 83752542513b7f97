import pytest
import torch
import torch.nn.functional as F

from lfdm.autoencoder.predictors.dense import DenseMotionPredictor, compose_flow, follow_flow
from lfdm.autoencoder.predictors.matching import ImageFeatures
from lfdm.autoencoder.predictors.predictor import LossInputs, MotionEstimate
from lfdm.autoencoder.predictors.registry import build_predictor
from lfdm.config.predictors import DenseConfig, RegionConfig
from lfdm.errors import UserError
from lfdm.motion.warp import identity_grid

both_strides = pytest.mark.parametrize("stride", [2, 4])


def make_predictor(stride: int = 2, *, tracking: float = 0.0) -> DenseMotionPredictor:
    torch.manual_seed(0)
    return DenseMotionPredictor(DenseConfig(channels=(8, 8, 16, 16), match_channels=8, tracking=tracking), stride=stride)


def sharpen(predictor: DenseMotionPredictor) -> None:
    """Let every cell take its best match; the flow is that match with nothing added."""
    predictor.matching.log_scale.fill_(12.0)
    for name in ("coarse_head.bias", "fine_head.bias"):
        if name in (parameters := dict(predictor.named_parameters())):
            parameters[name][0] = 1.0


def match_loss(estimate: MotionEstimate) -> torch.Tensor:
    return estimate.losses["match"](LossInputs(torch.empty(0), lambda generate: generate(2, torch.Generator())))


@both_strides
def test_training_starts_at_the_identity_exactly(stride: int) -> None:
    motion = make_predictor(stride).predict(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 3, 32, 32)).motion
    assert not motion.corners
    assert torch.equal(motion.flow, torch.zeros(2, 2, 3, 32 // stride, 32 // stride))
    visible = torch.sigmoid(torch.tensor(3.0))
    assert torch.equal(motion.occlusion, visible.expand(2, 1, 3, 32 // stride, 32 // stride))


@both_strides
def test_every_parameter_learns_after_the_first_step(stride: int) -> None:
    predictor = make_predictor(stride)
    with torch.no_grad():
        for name, parameter in predictor.named_parameters():
            if name.endswith("head.weight"):
                parameter.normal_(std=0.1)
    dense = predictor.predict(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 2, 32, 32))
    loss = sum(motion.flow.square().sum() + motion.occlusion.sum() for motion in (dense.motion, dense.finest()))
    (loss + match_loss(dense)).backward()
    silent = [name for name, p in predictor.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@both_strides
@torch.no_grad()
def test_sharp_matching_finds_every_cell_of_a_still_clip(stride: int) -> None:
    predictor = make_predictor(stride)
    sharpen(predictor)
    source = torch.rand(2, 3, 32, 32)
    dense = predictor.predict(source, source.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    assert match_loss(dense) < 1e-3
    torch.testing.assert_close(dense.motion.flow, torch.zeros_like(dense.motion.flow), atol=1e-3, rtol=0)


@both_strides
@torch.no_grad()
def test_sharp_matching_finds_a_shift(stride: int) -> None:
    """A frame moved right by two cells is found that far to the left, away from the edges."""
    predictor = make_predictor(stride)
    sharpen(predictor)
    source = F.interpolate(torch.rand(1, 3, 64, 64), scale_factor=stride // 2)  # squares that survive the reduction
    flow = predictor.predict(source, source.roll(2 * stride, dims=3).unsqueeze(2)).motion.flow[0, :, 0, 8:-8, 8:-8]
    expected = torch.tensor([-2 * 2 / 32, 0.0])[:, None, None]
    found = (flow - expected).abs().amax(0) < 1e-2
    assert found.float().mean() > 0.95  # untrained features depend on the position, too, and confuse a few cells


@torch.no_grad()
def test_frames_and_samples_do_not_influence_each_other() -> None:
    predictor = make_predictor()
    for parameter in predictor.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    source, driving = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 2, 32, 32)
    whole = predictor.predict(source, driving).motion
    alone = predictor.predict(source[1:], driving[1:, :, 1:]).motion
    torch.testing.assert_close(whole.flow[1:, :, 1:], alone.flow, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.occlusion[1:, :, 1:], alone.occlusion, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pull", [None, 1.0, 20.0])
@torch.no_grad()
def test_fused_matching_equals_explicit_matching(pull: float | None) -> None:
    """Softmax of scaled cosine similarity less weighted squared distance, written out with all n x n scores."""
    predictor = make_predictor()
    matching = predictor.matching
    matching.distance_weight.fill_(3.0)
    source, driving = (
        ImageFeatures(torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4), torch.rand(2, 12, 8, 8)) for _ in range(2)
    )
    expected = 0.3 * torch.randn(2, 2, 8, 8)
    match = matching(source, driving) if pull is None else matching(source, driving, expected, pull)

    keys, queries = (matching.features(x.half, x.quarter).flatten(2) for x in (source, driving))  # (b, c, n)
    cells = identity_grid(8, 8, corners=False).flatten(0, 1).expand(2, -1, -1)  # (b, n, 2)
    centres = cells if pull is None else cells + expected.flatten(2).transpose(1, 2)
    weight = torch.nn.functional.softplus(matching.distance_weight) * (pull or 1.0)
    distance = torch.cdist(centres, cells).square()
    scores = matching.log_scale.exp() * torch.einsum("bcq,bck->bqk", queries, keys) - weight * distance
    probability = scores.softmax(-1)
    flow = (probability @ cells - cells).transpose(1, 2).unflatten(2, (8, 8))
    found = torch.einsum("bqk,bck->bcq", probability, source.pixels.flatten(2)).unflatten(2, (8, 8))
    torch.testing.assert_close(match.flow, flow, atol=1e-5, rtol=0)
    torch.testing.assert_close(match.pixels, found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [2, 4])
@torch.no_grad()
def test_a_tracked_video_in_parts_is_the_whole(stride: int) -> None:
    predictor = make_predictor(stride, tracking=20.0)
    for parameter in predictor.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    source, driving = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 5, 32, 32)
    whole = predictor.predict(source, driving)
    first = predictor.predict(source, driving[:, :, :2]).motion
    second = predictor.predict(source, driving[:, :, 2:], (driving[:, :, 1], first.flow[:, :, 1])).motion
    torch.testing.assert_close(torch.cat((first.flow, second.flow), dim=2), whole.motion.flow, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat((first.occlusion, second.occlusion), dim=2), whole.motion.occlusion, atol=1e-4, rtol=0)
    alone = predictor.predict(source, driving[:, :, 4:]).motion
    assert (alone.flow - whole.motion.flow[:, :, 4:]).abs().max() > 1e-3  # it does track
    one = predictor.predict(source, driving[:, :, :1]).motion
    torch.testing.assert_close(one.flow, whole.motion.flow[:, :, :1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_expected_flow_resolves_ambiguous_matches() -> None:
    """Cells 2 and 12 of a row look like cell 9 of the driving image: the nearer one is taken, or the one that is expected."""
    predictor = make_predictor()
    predictor.matching.distance_weight.fill_(20.0)
    for name, parameter in predictor.matching.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()

    def describe(*columns: int) -> ImageFeatures:
        half = torch.zeros(1, 8, 4, 16)
        half[:, :, 1, list(columns)] = 1.0
        return ImageFeatures(half, torch.zeros(1, 16, 2, 8), torch.zeros(1, 12, 4, 16))

    def shift(expected: torch.Tensor | None) -> float:
        return float(predictor.matching(describe(2, 12), describe(9), expected, 20.0).flow[0, 0, 1, 9]) * 8  # cells

    to_the_left = torch.zeros(1, 2, 4, 16)
    to_the_left[:, 0] = -6 / 8
    assert shift(None) == pytest.approx(3, abs=0.1)
    assert shift(to_the_left) == pytest.approx(-7, abs=0.1)


@torch.no_grad()
def test_compose_flow_adds_the_steps() -> None:
    flow, step = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8)
    flow[:, 0, :, :4] = 0.5  # the left half came from the right
    step[:, 0] = -1.0  # and everything moved right by half of the frame since
    composed = compose_flow(flow, step)
    assert torch.equal(composed[:, 0, :, 4:], torch.full((1, 4, 4), -0.5))
    assert torch.equal(composed[:, 1], torch.zeros(1, 4, 8))


@torch.no_grad()
def test_follow_flow_moves_on_from_where_points_are() -> None:
    displacement, step = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8)
    displacement[:, 0, :, :4] = 1.0  # the left half is now in the right one
    step[:, 0, :, 4:] = -0.5  # which moves to the left
    moved = follow_flow(displacement, step)
    assert torch.equal(moved[:, 0], torch.tensor([0.5, 0.5, 0.5, 0.5, -0.5, -0.5, -0.5, -0.5]).expand(1, 4, 8))
    assert torch.equal(moved[:, 1], torch.zeros(1, 4, 8))


@both_strides
@torch.no_grad()
def test_points_are_tracked_forward_through_a_video(stride: int) -> None:
    """Each frame is the first one moved right by a cell."""
    predictor = make_predictor(stride).eval()
    sharpen(predictor)
    next(predictor.stem.parameters())[:, 3:] = 0  # features do not depend on where a cell is
    predictor.get_parameter("matching.projections.1.weight").zero_()
    image = F.interpolate(torch.rand(2, 3, 16, 16), scale_factor=stride)
    video = torch.stack([image.roll(stride * k, dims=-1) for k in range(5)], dim=2)
    found = predictor.track_points(video)
    assert found.shape == (2, 2, 5, 16, 16)
    expected = torch.arange(5.0).view(5, 1, 1) * 2 / 16
    inside = found[:, 0, :, 2:-2, 2:8]
    torch.testing.assert_close(inside, expected.expand_as(inside), atol=0.02, rtol=0)
    assert found[:, 1, :, 2:-2, 2:8].abs().max() < 0.02


def test_a_predictor_that_cannot_track_points_says_so() -> None:
    predictor = build_predictor(RegionConfig(), stride=4, corners=False, padding_mode="zeros")
    with pytest.raises(UserError, match="dense"):
        predictor.track_points(torch.rand(1, 3, 2, 64, 64))


@both_strides
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_stay_close(stride: int, dtype: torch.dtype) -> None:
    predictor = make_predictor(stride).eval()
    source, driving = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 2, 32, 32)
    with torch.no_grad():
        predictor.get_parameter("coarse_head.bias")[0] = 1.0  # the matched flow, as it is
        exact = predictor.predict(source, driving).motion
        rounded = predictor.to(dtype).predict(source.to(dtype), driving.to(dtype)).motion
    assert exact.flow.abs().mean() > 0.05
    assert (rounded.flow - exact.flow).abs().mean() < 0.1 * exact.flow.abs().mean()
