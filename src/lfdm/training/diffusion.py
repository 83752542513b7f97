"""Training of stage 2: diffusion over the motion that stage 1 sees in training clips (LFDM section 3.3)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lfdm.config import DiffusionConfig, DiffusionTrainingConfig, Preset, to_json
from lfdm.data.clips import ClipCache, ColorJitter, Progress, labels, open_cache, read_index
from lfdm.diffusion import add_noise, diffusion_loss, draw_timesteps
from lfdm.models.autoencoder import LatentFlowAutoencoder
from lfdm.models.condition import ConditionEncoder
from lfdm.models.loading import find_model
from lfdm.models.motion_target import MotionTarget
from lfdm.models.unet3d import MotionUNet3D
from lfdm.pipeline import MODEL_DIR, LatentFlowPipeline
from lfdm.training.autoencoder import AutoencoderTask
from lfdm.training.loop import StepReport, fit, prepare_run
from lfdm.training.motion_cache import MotionCache, MotionDataset, open_motion_cache, to_motion


PANEL_CLIPS = 4


class DiffusionTask:
    """What `fit` needs to train a `MotionUNet3D`."""

    name = "unet"

    def __init__(self, pipeline: LatentFlowPipeline, preset: Preset, clips: ClipCache, motion: MotionCache) -> None:
        self.pipeline = pipeline
        self.module: MotionUNet3D = pipeline.unet
        self.diffusion: DiffusionConfig = preset.diffusion
        self.config: DiffusionTrainingConfig = preset.diffusion_training
        self.num_frames = preset.num_frames
        self.dataset = MotionDataset(
            clips,
            motion,
            list(pipeline.condition.labels),
            num_frames=preset.num_frames,
            sampler=self.config.frame_sampler,
            flip_probability=self.config.flip_probability,
            jitter=ColorJitter.from_amounts(self.config.color_jitter, random_order=False),
            seed=self.config.optimization.seed,
        )

    def loss(self, module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The weighted denoising loss of one batch.

        Args:
            batch: `image` (b, 3, H, W) uint8, `motion` (b, 3, t, h, w) float16, `label` (b,).
        """
        self.pipeline.autoencoder.to(batch["motion"].device)
        self.pipeline.condition.to(batch["motion"].device)
        motion = to_motion(batch["motion"], corners=self.pipeline.motion_target.corners)
        clean = self.pipeline.motion_target.encode(motion)
        b, device = len(clean), clean.device
        kind = self.diffusion.prediction_type
        timesteps = draw_timesteps(b, kind, generator=generator)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        dropped = torch.rand(b, generator=generator, device=device) < self.config.condition_dropout
        noisy = add_noise(clean, noise, timesteps, kind)
        with torch.no_grad():
            latent = self.pipeline.autoencoder.encode(batch["image"].float() / 255).latent
        condition = torch.where(dropped[:, None], self.pipeline.condition.null, self.pipeline.condition.table[batch["label"]])
        prediction = module(noisy, timesteps, condition, latent)
        loss = diffusion_loss(
            prediction, clean, noise, timesteps, prediction_type=kind, min_snr_gamma=self.config.min_snr_gamma
        )
        return {"loss": loss.mean()}

    def panel(self, module: nn.Module) -> np.ndarray:
        """Real and generated clips below each other, for fixed training images and their labels."""
        assert isinstance(module, MotionUNet3D)
        clips = self.dataset.clips
        chosen = [int(i) for i in np.linspace(0, len(clips) - 1, PANEL_CLIPS)]
        trained, self.pipeline.unet = self.pipeline.unet, module
        try:
            result = self.pipeline(
                [clips.clip(i)[0] for i in chosen],
                [clips.records[i].label for i in chosen],
                generator=[torch.Generator().manual_seed(i) for i in chosen],
                output_type="np",
            )
        finally:
            self.pipeline.unet = trained
        rows, captions = [], []
        for index, frames in zip(chosen, result.frames, strict=True):
            real = clips.clip(index)
            rows += [np.asarray(real[np.linspace(0, len(real) - 1, self.num_frames).astype(int)]), frames]
            captions += [f"{clips.records[index].label}: real", "generated"]
        from lfdm.visualize import contact_sheet

        return contact_sheet(rows, captions)


def train_diffusion(
    preset: Preset,
    data: Path,
    autoencoder: Path,
    out: Path,
    *,
    report: Callable[[StepReport], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train stage 2 of `preset` on the training clips of `data`; returns the last checkpoint in the run folder `out`.

    `out` can be given to `LatentFlowPipeline.from_pretrained` as soon as it holds a checkpoint.

    Args:
        autoencoder: stage-1 run, model or pipeline folder.
        report: called with the metrics every `log_steps`.
        progress: called while clips are decoded and their motion is estimated.

    Raises:
        ValueError: settings that do not fit the data, the auto-encoder, the run in `out` or each other.
        FileNotFoundError: no such data set or model.
    """
    records = [record for record in read_index(data) if record.split == "train"]
    if not records:
        raise ValueError(f"{data} has no training clips (split 'train')")
    stage1 = _load_autoencoder(autoencoder, preset)
    settings = {"stage": DiffusionTask.name, "data": str(data), "autoencoder": str(autoencoder), "preset": to_json(preset)}
    prepare_run(out, settings)
    clips = open_cache(data, records, preset.image_size, preset.fit, progress=progress)
    precision = preset.diffusion_training.optimization.mixed_precision
    with torch.autocast(stage1.device.type, torch.bfloat16, enabled=precision == "bf16"):  # estimating motion takes minutes
        motion = open_motion_cache(stage1, clips, progress=progress)
    pipeline = _build_pipeline(preset, stage1, motion, labels(records))
    if not (out / MODEL_DIR).exists():
        pipeline.save_pretrained(out / MODEL_DIR, with_unet=False)
    task = DiffusionTask(pipeline, preset, clips, motion)
    return fit(task, preset.diffusion_training.optimization, out, report=report)


def _load_autoencoder(path: Path, preset: Preset) -> LatentFlowAutoencoder:
    """The trained stage 1, frozen; ValueError where its configuration is not the preset's."""
    stage1 = LatentFlowAutoencoder.from_pretrained(find_model(path, AutoencoderTask.name)).requires_grad_(False)
    differing = [
        f"{name} is {stage1.config[name]!r} there, {value!r} here"
        for name, value in json.loads(json.dumps(to_json(preset.autoencoder))).items()
        if json.loads(json.dumps(stage1.config[name])) != value
    ]
    if differing:
        raise ValueError(f"{path} holds a stage 1 of another configuration than preset {preset.name}: {'; '.join(differing)}")
    return stage1


def _build_pipeline(
    preset: Preset, stage1: LatentFlowAutoencoder, motion: MotionCache, names: list[str]
) -> LatentFlowPipeline:
    """Everything that stage 2 needs, with a U-Net freshly initialised from the seed."""
    config = preset.diffusion
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.diffusion_training.optimization.seed)
        unet = MotionUNet3D(**to_json(preset.unet))
        condition = ConditionEncoder.from_labels(names, preset.unet.condition_dim, learned_null=config.learned_null)
    if config.normalize:
        target = MotionTarget.measure(
            motion.motions(),
            kind=config.motion_target,
            corners=stage1.corners,
            still_first_frame=config.still_first_frame,
            clamp=config.clamp_to_range,
        )
    else:
        target = MotionTarget(kind=config.motion_target, corners=stage1.corners, still_first_frame=config.still_first_frame)
    return LatentFlowPipeline.from_components(preset, stage1, unet, condition, target)
