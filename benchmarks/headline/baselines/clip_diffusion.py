"""Train VDM and LDM: our diffusion objective on the pixels or frame latents of a clip.

Shapes: clean sample (b, c, t, h, w) · first (b, c, h, w).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.experiment.evaluation import training_clips
from benchmarks.headline.baselines.config import DenoiserConfig
from benchmarks.headline.baselines.denoiser import ClipDenoiser
from benchmarks.headline.baselines.frame_autoencoder import MODEL_NAME as AUTOENCODER_NAME
from benchmarks.headline.baselines.frame_autoencoder import load_frame_autoencoder, open_latents
from benchmarks.headline.baselines.generators import ClipDiffusionGenerator
from benchmarks.headline.baselines.space import ChannelStatistics, ClipSpace, LatentSpace, PixelSpace
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.config.training import DiffusionTrainingConfig, OptimizationConfig
from lfdm.data.augmentation import ColorJitter
from lfdm.data.cache import ClipCache
from lfdm.data.clips import ClipDataset
from lfdm.data.frame_indices import sample_indices, uniform_indices
from lfdm.data.index import labels
from lfdm.diffusion.process import add_noise, diffusion_loss, sample_timesteps
from lfdm.folders.files import file_sha256
from lfdm.folders.model_folder import WEIGHTS_NAME
from lfdm.folders.run_folder import check_run, find_model, prepare_run
from lfdm.training.batches import BatchRandomness
from lfdm.training.loop import train
from lfdm.training.reports import StepReport

MODEL_NAME = "denoiser"
STATISTICS_NAME = "statistics.json"
LATENTS_NAME = "latents.npy"
PANEL_CLIPS = 2
_STATISTICS_CLIPS = 512


class LatentClips(Dataset[dict[str, Any]]):
    """Frame latents of clips, indexed by (position, index) like `ClipDataset`.

    Items: `latents` (c, num_frames, h, w) float16, not normalised, and `label`. There is no colour jitter: latents are made once.
    """

    def __init__(self, clips: ClipCache, latents: np.ndarray, config: DiffusionTrainingConfig, num_frames: int) -> None:
        self.clips, self.latents, self.config, self.num_frames = clips, latents, config, num_frames

    def __len__(self) -> int:
        return len(self.clips)

    def clip(self, index: int) -> np.ndarray:
        """Return the latents (t, c, h, w) of all frames of a clip."""
        return self.latents[self.clips.offsets[index] : self.clips.offsets[index + 1]]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        rng = np.random.default_rng((self.config.optimization.seed, position))
        clip = self.clip(index)
        chosen = clip[sample_indices(self.config.frame_sampler, len(clip), self.num_frames, rng)]
        return {
            "latents": torch.from_numpy(np.ascontiguousarray(chosen.transpose(1, 0, 2, 3))),
            "label": self.clips.label_row(index),
        }


class ClipDiffusionTask:
    """The training task of a `ClipDenoiser`."""

    def __init__(
        self,
        module: ClipDenoiser,
        space: PixelSpace | LatentSpace,
        preset: Preset,
        clips: ClipCache,
        dataset: ClipDataset | LatentClips,
    ) -> None:
        self.module, self.space, self.preset, self.clips, self.dataset = module, space, preset, clips, dataset
        self.config = preset.diffusion_training
        self.rows = module.rows(clips.labels)

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        return {MODEL_NAME: module}

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        """Return the weighted denoising loss of one batch, as in our stage 2.

        Args:
            batch: `label` (b,), places in the clips' labels, and `video` (b, 3, t, H, W) uint8 or `latents` (b, c, t, h, w).
        """
        kind, device = self.preset.diffusion.prediction_type, randomness.generator.device
        with torch.no_grad():
            clean = self._clean(batch)
        chances = randomness.sample(lambda size, generator: torch.rand(size, generator=generator, device=device))
        rows = self.rows.to(device)[batch["label"]].masked_fill(chances < self.config.condition_dropout, -1)
        timesteps = randomness.sample(lambda size, generator: sample_timesteps(size, kind, generator=generator))
        shape = clean.shape[1:]
        noise = randomness.sample(lambda size, generator: torch.randn(size, *shape, generator=generator, device=device))
        prediction = module(add_noise(clean, noise, timesteps, kind), timesteps, rows, clean[:, :, 0])
        loss = diffusion_loss(prediction, clean, noise, timesteps, kind, min_snr_gamma=self.config.min_snr_gamma)
        return {"loss": loss.mean()}

    def _clean(self, batch: dict[str, Tensor]) -> Tensor:
        if "latents" in batch:
            return self.space.statistics.normalize(batch["latents"].float())
        return self.space.encode(batch["video"].float() / 255)

    def panel(self, module: nn.Module) -> np.ndarray:
        """Render a clip (t, 2 S, n S, 3): real clips above the clips generated from their first frames and labels."""
        assert isinstance(module, ClipDenoiser)
        t = self.preset.num_frames
        chosen = [int(i) for i in np.linspace(0, len(self.clips) - 1, PANEL_CLIPS)]
        real = np.stack([self.clips.clip(i)[uniform_indices(self.clips.num_frames(i), t)] for i in chosen])
        generator = ClipDiffusionGenerator.from_preset("panel", module, self.space, self.preset)
        made = generator(list(real[:, 0]), [self.clips.records[i].label for i in chosen], chosen)
        return rearrange(np.stack((real, made.frames)), "row n t h w c -> t (row h) (n w) c")


def build_denoiser(config: DenoiserConfig, preset: Preset, names: list[str], channels: int) -> ClipDenoiser:
    """Build a denoiser, initialised from stage 2's seed, for clips of `channels` channels and the labels `names`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.diffusion_training.optimization.seed)
        return ClipDenoiser(
            labels=names,
            sample_channels=channels,
            patch_size=config.patch_size,
            predicts_clean=config.predicts_clean,
            prediction_type=preset.diffusion.prediction_type,
            dim=config.dim,
            channel_multipliers=config.channel_multipliers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            condition_dim=preset.unet.condition_dim,
        )


def baseline_optimization(config: DenoiserConfig, preset: Preset) -> OptimizationConfig:
    """Return stage 2's optimizer settings with the baseline's batch size and learning rate."""
    stage2 = to_json(preset.diffusion_training.optimization)
    return OptimizationConfig(**{**stage2, "batch_size": config.batch_size, "learning_rate": config.learning_rate})


def pixel_task(config: DenoiserConfig, preset: Preset, clips: ClipCache) -> ClipDiffusionTask:
    """Return the training task of a new denoiser of pixels."""
    training = preset.diffusion_training
    parts = (torch.from_numpy(np.array(clips.clip(i))).permute(0, 3, 1, 2) / 255 for i in _statistics_clips(clips))
    statistics = ChannelStatistics.measure(parts)
    whole = ChannelStatistics(statistics.mean, statistics.std, (0.0,) * 3, (1.0,) * 3)
    dataset = ClipDataset(
        clips,
        num_frames=preset.num_frames,
        sampling=training.frame_sampler,
        jitter=ColorJitter(amounts=training.color_jitter, random_order=False, spare_borders=True),
        flip_probability=training.flip_probability,
        seed=training.optimization.seed,
    )
    denoiser = build_denoiser(config, preset, labels(clips.records), 3)
    return ClipDiffusionTask(denoiser, PixelSpace(whole), preset, clips, dataset)


def latent_task(
    config: DenoiserConfig, preset: Preset, clips: ClipCache, autoencoder: AutoencoderKL, latents_path: Path
) -> ClipDiffusionTask:
    """Return the training task of a new denoiser of frame latents, which are cached at `latents_path`."""
    latents = open_latents(autoencoder, clips, latents_path)
    dataset = LatentClips(clips, latents, preset.diffusion_training, preset.num_frames)
    statistics = ChannelStatistics.measure(torch.from_numpy(np.array(dataset.clip(i))) for i in range(len(clips)))
    denoiser = build_denoiser(config, preset, labels(clips.records), autoencoder.config["latent_channels"])
    return ClipDiffusionTask(denoiser, LatentSpace(statistics, autoencoder), preset, clips, dataset)


def train_pixels(
    config: DenoiserConfig, preset: Preset, data: Path, out: Path, *, report: Callable[[StepReport], None] | None = None
) -> Path:
    """Train VDM with the steps and schedule of stage 2 in `preset`; resumes. Returns the last checkpoint in `out`."""
    settings = {"stage": "pixels", "data": str(data), "model": to_json(config), "preset": to_json(preset)}
    check_run(out, settings)
    task = pixel_task(config, preset, training_clips(preset, data))
    return _train(task, config, preset, out, settings, report)


def train_latents(
    config: DenoiserConfig,
    preset: Preset,
    data: Path,
    autoencoder: Path,
    out: Path,
    *,
    report: Callable[[StepReport], None] | None = None,
) -> Path:
    """Train LDM's second stage on latents of the auto-encoder run `autoencoder`; otherwise like `train_pixels`."""
    weights = find_model(autoencoder, AUTOENCODER_NAME) / WEIGHTS_NAME
    settings = {
        "stage": "latents",
        "data": str(data),
        "autoencoder_sha256": file_sha256(weights),
        "model": to_json(config),
        "preset": to_json(preset),
    }
    prepare_run(out, settings)  # before the latents, which are stored in the run folder
    clips = training_clips(preset, data)
    frames = load_frame_autoencoder(autoencoder, device=str(PartialState().device))
    task = latent_task(config, preset, clips, frames, out / LATENTS_NAME)
    return _train(task, config, preset, out, settings, report)


def _train(
    task: ClipDiffusionTask,
    config: DenoiserConfig,
    preset: Preset,
    out: Path,
    settings: dict[str, Any],
    report: Callable[[StepReport], None] | None,
) -> Path:
    prepare_run(out, settings)
    task.space.statistics.save(out / STATISTICS_NAME)
    return train(task, baseline_optimization(config, preset), out, report=report)


def load_denoiser(run: Path, autoencoder: Path | None, *, device: str = "cpu") -> tuple[ClipDenoiser, ClipSpace]:
    """Load the newest averaged weights of a run and their space: pixels, or latents of the given auto-encoder run."""
    denoiser = ClipDenoiser.from_pretrained(find_model(run, MODEL_NAME), device=device)
    statistics = ChannelStatistics.load(run / STATISTICS_NAME)
    if autoencoder is None:
        return denoiser, PixelSpace(statistics)
    return denoiser, LatentSpace(statistics, load_frame_autoencoder(autoencoder, device=device))


def _statistics_clips(clips: ClipCache) -> list[int]:
    """Return evenly spaced indices of the clips on which pixel statistics are measured."""
    return np.linspace(0, len(clips) - 1, min(len(clips), _STATISTICS_CLIPS)).astype(int).tolist()
