import pytest
import torch
from torch import Tensor

from lfdm.errors import UserError
from lfdm.motion.instants import instants
from lfdm.motion.latent_chain import DAMPING, LatentChain
from lfdm.motion.learned_codec import LearnedCodec
from lfdm.motion.motion import Motion

SIZE = (8, 12)
SPAN = 16
NUM_FUNCTIONS = 6


def swings(seed: int, b: int = 2) -> Motion:
    """Return mixtures of sines of time, all 0 in the first frame, with two patterns of space each, the same for all seeds."""
    functions = torch.sin(torch.arange(1, NUM_FUNCTIONS + 1)[:, None] * instants(SPAN).float())
    patterns = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(100)) - 0.5
    generator = torch.Generator().manual_seed(seed)
    amounts = torch.randn(b, NUM_FUNCTIONS, 2, SIZE[0] // 2, SIZE[1] // 2, generator=generator)
    values = torch.einsum("ft,pcij,bfphw->bcthiwj", functions, patterns, amounts).reshape(b, 3, SPAN, *SIZE)
    return Motion(0.2 * values[:, :2], 0.6 - 0.05 * values[:, 2:])


@pytest.fixture(scope="module")
def chain() -> LatentChain:
    return LatentChain(LearnedCodec(num_components=2 * NUM_FUNCTIONS).measured([swings(seed) for seed in range(8)]), SPAN)


@pytest.fixture(scope="module")
def sample(chain: LatentChain) -> Tensor:
    """A sample of 48 frames, each latent the motion of another clip."""
    return torch.cat([chain.codec.encode(swings(seed)) for seed in range(20, 20 + chain.num_latents(48))], dim=2)


@pytest.mark.parametrize(("num_frames", "latents"), [(1, 1), (16, 1), (17, 2), (24, 2), (25, 3), (48, 5), (10_000, 1249)])
def test_a_latent_adds_half_of_its_frames(chain: LatentChain, num_frames: int, latents: int) -> None:
    assert chain.num_latents(num_frames) == latents
    assert chain.sample_shape(num_frames, *SIZE) == (3, latents, *SIZE)


@pytest.mark.parametrize("span", [3, 4, 5, 7, 16, 40])
def test_clips_of_any_length_can_be_chained(span: int) -> None:
    chain = LatentChain(LearnedCodec(num_components=4), span)
    assert 1 <= chain.overlap <= chain.stride
    for num_frames in (span + 1, 3 * span, 10 * span + 1):
        shown = chain.decode(torch.zeros(1, *chain.sample_shape(num_frames, *SIZE)), num_frames)
        assert shown.num_frames == num_frames
        assert chain.over_time(torch.ones(2, num_frames)).shape == (2, chain.num_latents(num_frames))


def test_latents_agree_where_they_overlap(chain: LatentChain, sample: Tensor) -> None:
    def difference(latents: Tensor) -> float:
        motions = [chain.codec.decode(latent, SPAN) for latent in latents.split(1, dim=2)]
        ends = [motion.frames(SPAN - chain.overlap, SPAN).flow for motion in motions[:-1]]
        starts = [motion.frames(chain.run_up, chain.run_up + chain.overlap).flow for motion in motions[1:]]
        return float((torch.stack(ends) - torch.stack(starts)).square().mean().sqrt())

    assert difference(sample) > 10 * DAMPING
    assert difference(chain.clamp(sample)) < DAMPING


def test_there_is_no_jump_between_latents(chain: LatentChain, sample: Tensor) -> None:
    def steps(latents: Tensor) -> Tensor:
        return chain.decode(latents, 48).flow.diff(dim=2).norm(dim=1).mean(dim=(0, 2, 3))

    seams = torch.zeros(47, dtype=torch.bool)
    for first in range(SPAN - chain.overlap, 47, chain.stride):
        seams[first - 1 : first + chain.overlap] = True
    joined, separate = steps(chain.clamp(sample)), steps(sample)
    assert joined[seams].max() <= joined[~seams].max()
    assert separate[seams].max() > separate[~seams].max()


def test_the_first_latent_is_as_without_a_chain(chain: LatentChain, sample: Tensor) -> None:
    joined = chain.clamp(sample)
    assert torch.equal(joined[:, :, :1], chain.codec.clamp(sample[:, :, :1]))
    whole, first = chain.decode(joined, 48), chain.codec.decode(joined[:, :, :1], SPAN)
    kept = SPAN - chain.overlap
    assert torch.equal(whole.frames(0, kept).flow, first.frames(0, kept).flow)
    assert not whole.flow[:, :, 0].any()


def test_weights_of_labels_are_means_over_the_frames_that_a_latent_adds(chain: LatentChain) -> None:
    weights = torch.zeros(2, 28)
    weights[0, :20], weights[1, 20:] = 1, 1
    expected = torch.tensor([[1, 0.5, 0], [0, 0.5, 1]])
    assert torch.equal(chain.over_time(weights), expected)
    with pytest.raises(UserError, match="all 16 frames"):
        chain.codec.over_time(torch.ones(1, 16))
