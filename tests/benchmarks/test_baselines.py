"""The baselines' networks, spaces and generators."""

import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from benchmarks.headline.baselines.config import BaselinesConfig, check_parameters
from benchmarks.headline.baselines.denoiser import ClipDenoiser
from benchmarks.headline.baselines.frame_autoencoder import LATENT_CHANNELS, build_frame_autoencoder
from benchmarks.headline.baselines.generators import ClipDiffusionGenerator, CopyGenerator, NearestMotionGenerator, outline
from benchmarks.headline.baselines.space import ChannelStatistics, LatentSpace, PixelSpace
from benchmarks.headline.methods import ComparisonSettings
from benchmarks.headline.planning import count_parameters
from lfdm.config.diffusion import PredictionType
from lfdm.config.presets import Preset, get_preset
from lfdm.data.cache import open_cache
from lfdm.data.index import ClipRecord
from lfdm.diffusion.process import add_noise, target
from lfdm.errors import UserError
from lfdm.pipeline.pipeline import LatentFlowPipeline

PIXELS = PixelSpace(ChannelStatistics((0.5,) * 3, (0.25,) * 3, (0.0,) * 3, (1.0,) * 3))


def test_denoiser_depends_on_all_inputs(tiny_denoiser: ClipDenoiser) -> None:
    sample, first = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 3, 8, 8)
    row, time = torch.tensor([0]), torch.tensor([500])
    with torch.inference_mode():
        output = tiny_denoiser(sample, time, row, first)
        others = [
            tiny_denoiser(sample + 1, time, row, first),
            tiny_denoiser(sample, time + 100, row, first),
            tiny_denoiser(sample, time, row + 1, first),
            tiny_denoiser(sample, time, row - 1, first),
            tiny_denoiser(sample, time, row, first + 1),
        ]
        again = tiny_denoiser(sample, time, row, first)
    assert output.shape == sample.shape
    assert torch.equal(output, again)  # the package is deterministic
    assert all((output - other).abs().max() > 1e-3 for other in others)


@pytest.mark.usefixtures("needs_package")
def test_folding_keeps_the_shape_and_refuses_other_sizes() -> None:
    folded = ClipDenoiser(
        labels=("a",),
        sample_channels=3,
        patch_size=2,
        dim=8,
        channel_multipliers=(1, 2),
        num_heads=2,
        head_dim=8,
        condition_dim=8,
    )
    sample, first = torch.randn(2, 3, 3, 8, 12), torch.randn(2, 3, 8, 12)
    times, rows = torch.zeros(2, dtype=torch.long), torch.tensor([0, -1])
    assert folded(sample, times, rows, first).shape == sample.shape
    with pytest.raises(UserError, match=r"4.*10"):
        folded(sample[..., :10], times, rows, first[..., :10])


@pytest.mark.parametrize("kind", get_args(PredictionType))
def test_a_prediction_from_x0_equals_the_target(tiny_denoiser: ClipDenoiser, kind: PredictionType) -> None:
    options = {**tiny_denoiser.config, "predicts_clean": True, "prediction_type": kind}
    denoiser = ClipDenoiser(**{name: value for name, value in options.items() if not name.startswith("_")})
    clean, noise, times = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 8, 8), torch.tensor([200, 900])
    denoiser.network.forward = lambda *_, **__: clean
    sample, rows, first = add_noise(clean, noise, times, kind), torch.tensor([0, 1]), clean[:, :, 0]
    torch.testing.assert_close(denoiser(sample, times, rows, first), target(clean, noise, times, kind), rtol=0, atol=1e-4)
    almost = denoiser(add_noise(clean, noise, times * 0, kind), times * 0, rows, first)
    assert almost.abs().max() < 2 * noise.abs().max()


def test_denoiser_round_trip(tiny_denoiser: ClipDenoiser, tmp_path: Path) -> None:
    tiny_denoiser.save_pretrained(tmp_path / "denoiser")
    loaded = ClipDenoiser.from_pretrained(tmp_path / "denoiser")
    sample, first = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 3, 8, 8)
    inputs = sample, torch.tensor([3]), torch.tensor([1]), first
    assert torch.equal(loaded(*inputs), tiny_denoiser(*inputs))


@pytest.mark.usefixtures("needs_package")
def test_the_torchvision_stub_is_removed() -> None:
    module = sys.modules.get("torchvision")
    assert module is None or hasattr(module, "__version__")


def test_unknown_label_is_refused(tiny_denoiser: ClipDenoiser) -> None:
    with pytest.raises(UserError, match="dance"):
        tiny_denoiser.rows(["wave", "dance"])


@pytest.mark.usefixtures("needs_package")
def test_every_method_has_as_many_parameters_as_ours() -> None:
    methods = ("ours", "vdm", "vdm-folded", "ldm", "copy")
    settings = ComparisonSettings(preset=get_preset("flow64"), data=Path("data"), methods=methods)
    counts = count_parameters(settings, ["a", "b"])
    assert list(counts) == list(methods[:-1])
    check_parameters(counts)
    with pytest.raises(UserError, match="parameters of vdm"):
        check_parameters({**counts, "vdm": 2 * counts["ours"]})


def test_statistics_normalise_and_restore() -> None:
    parts = [torch.randn(5, 2, 3, 3) * torch.tensor([1.0, 4.0]).view(2, 1, 1) + 2 for _ in range(20)]
    statistics = ChannelStatistics.measure(iter(parts))
    whole = torch.cat(parts)
    normal = statistics.normalize(whole)
    assert torch.allclose(normal.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(normal.std(dim=(0, 2, 3), unbiased=False), torch.ones(2), atol=1e-5)
    assert torch.allclose(statistics.restore(normal), whole, atol=1e-5)
    assert torch.equal(statistics.clamp(normal), normal)
    assert torch.allclose(statistics.restore(statistics.clamp(normal * 100)).amin(dim=(0, 2, 3)), torch.tensor(statistics.low))
    with pytest.raises(UserError, match="no clips"):
        ChannelStatistics.measure(iter([]))


def test_statistics_round_trip(tmp_path: Path) -> None:
    PIXELS.statistics.save(tmp_path / "statistics.json")
    assert ChannelStatistics.load(tmp_path / "statistics.json") == PIXELS.statistics


def test_latents_do_not_depend_on_the_clip() -> None:
    config = BaselinesConfig().frames
    autoencoder = build_frame_autoencoder(config, seed=0).eval()
    space = LatentSpace(ChannelStatistics((0.0,) * 4, (1.0,) * 4, (-9.0,) * 4, (9.0,) * 4), autoencoder)
    video = torch.rand(2, 3, 3, 16, 16)
    with torch.inference_mode():
        sample = space.encode(video)
        assert sample.shape == (2, LATENT_CHANNELS, 3, 4, 4)
        assert torch.allclose(space.encode(video[1:, :, 2:]), sample[1:, :, 2:], atol=1e-5)
        assert space.decode(sample).shape == video.shape


def test_diffusion_generator_keeps_frame_0_and_is_independent_of_the_batch(
    tiny_denoiser: ClipDenoiser, quick_preset: Preset
) -> None:
    generator = ClipDiffusionGenerator.from_preset("vdm", tiny_denoiser, PIXELS, quick_preset)
    images = [np.full((16, 16, 3), value, np.uint8) for value in (40, 200)]
    both = generator(images, ["wave", "jump"], [3, 4]).frames
    assert both.shape == (2, quick_preset.num_frames, 16, 16, 3)
    assert (both[:, 0] == np.stack(images)).all()
    alone = generator(images[1:], ["jump"], [4]).frames
    assert np.abs(both[1:].astype(int) - alone.astype(int)).max() <= 1  # rounding
    assert (generator(images[1:], ["jump"], [5]).frames != alone).any()
    generator.guidance_scale = 4.0
    assert (generator(images[1:], ["jump"], [4]).frames != alone).any()
    generator.guidance_scale = 0.0
    assert np.array_equal(generator(images[1:], ["jump"], [4]).frames, generator(images[1:], None, [4]).frames)


def test_copy_repeats_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    frames = CopyGenerator(5)([image], ["wave"], [0]).frames
    assert frames.shape == (1, 5, 8, 8, 3)
    assert (frames == image).all()


def test_nearest_motion_finds_the_clip_of_that_figure_and_label(
    puppets_dir: Path, puppet_records: list[ClipRecord], quick_preset: Preset
) -> None:
    clips = open_cache(puppets_dir, puppet_records, quick_preset.size, quick_preset.fit)
    pipeline = LatentFlowPipeline.from_preset(quick_preset, ("jump", "wave"))
    generator = NearestMotionGenerator(pipeline, clips, num_frames=quick_preset.num_frames)
    for index, record in enumerate(clips.records):
        image = clips.clip(index)[0]
        assert generator.nearest(image, record.label) == index
        assert generator.nearest(np.roll(255 - image, 1, axis=2), record.label) == index  # whatever the colours
        other = next(r.label for r in clips.records if r.label != record.label)
        assert clips.records[generator.nearest(image, other)].label == other
    videos = generator([clips.clip(0)[0]], [clips.records[0].label], [0])
    assert videos.frames.shape == (1, quick_preset.num_frames, 32, 32, 3)
    with pytest.raises(UserError, match="no training clip of the label 'dance'"):
        generator.nearest(clips.clip(0)[0], "dance")


def test_outline_of_a_uniform_image_is_zero() -> None:
    assert np.abs(outline(np.full((32, 32, 3), 90, np.uint8))).max() == 0
    edge = np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 255
    assert np.linalg.norm(outline(edge)) == pytest.approx(1)
    assert np.abs(outline(edge)[:, :7]).max() == 0
