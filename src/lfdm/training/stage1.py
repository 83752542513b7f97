"""Training of stage 1: two frames of a clip, one rebuilt from the other (LFDM section 3.2)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder, Reconstruction
from lfdm.autoencoder.growth import grown_weights
from lfdm.autoencoder.predictors.predictor import LossInputs
from lfdm.config.checks import check
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.config.training import AUXILIARY_LOSSES, AutoencoderTrainingConfig, Background
from lfdm.config.video import Fit, Size
from lfdm.data.augmentation import ColorJitter, PairAugmentation
from lfdm.data.cache import ClipCache
from lfdm.data.clips import PairDataset
from lfdm.data.progress import Progress
from lfdm.data.training_clips import ClipSource, TrainingClips, find_clips
from lfdm.errors import UserError
from lfdm.folders.files import expand_home
from lfdm.folders.model_folder import load_exactly
from lfdm.folders.remote import is_url
from lfdm.folders.run_folder import find_checkpoints, find_model
from lfdm.folders.sources import find_folder
from lfdm.training.batches import BatchRandomness
from lfdm.training.loop import train
from lfdm.training.losses.image import edge_aware_smoothness, multiscale_l1, ssim_loss
from lfdm.training.losses.perceptual import PerceptualLoss
from lfdm.training.motion_cache import MotionCache, open_motion_cache
from lfdm.training.optimization import uses_bf16
from lfdm.training.processes import process_state
from lfdm.training.reports import RunSummary, StepReport
from lfdm.training.run import open_run
from lfdm.visualize import flow_to_color, in_half_widths

PANEL_PAIRS = 6
STAGE2_SETTINGS = tuple(f"preset.{name}" for name in ("name", "num_frames", "fps", "unet", "diffusion", "diffusion_training"))
"""Settings that stage 1 does not depend on, and that a resumed run may therefore change."""


class AutoencoderTask:
    """The training task of a `LatentFlowAutoencoder`, for `lfdm.training.loop.train`.

    Args:
        teacher_motion: motion of the clips that `tracking_distillation_weight` needs.
    """

    name = "autoencoder"

    def __init__(
        self,
        module: LatentFlowAutoencoder,
        config: AutoencoderTrainingConfig,
        cache: TrainingClips,
        teacher_motion: MotionCache | None = None,
    ) -> None:
        self.module = module
        self.config = config
        self.dataset = PairDataset(
            cache,
            PairAugmentation(
                swap_probability=config.swap_probability,
                flip_probability=config.flip_probability,
                mirror_sided_labels=config.mirror_sided_labels,
                jitter=ColorJitter(amounts=config.color_jitter),
            ),
            seed=config.optimization.seed,
            distinct=config.distinct_frames,
            first_frame_probability=config.first_frame_probability,
            by_subject=config.pairs_by == "subject",
            motion=None if teacher_motion is None else teacher_motion.clip,
        )
        self.perceptual = _perceptual_loss(config)

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the networks to save, by the name of their folder."""
        return {self.name: module}

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        """Return the weighted sum `loss`, and each loss of a positive weight by its name, unweighted.

        Args:
            batch: `source` and `driving`, (b, 3, H, W) uint8; with a teacher also `flow` (b, 2, h, w) in half images and
                `has_flow` (b,), whether it is known.
        """
        source, driving = (batch[key].float() / 255 for key in ("source", "driving"))
        reconstruction: Reconstruction = module(source, driving)
        decoded, motion = reconstruction.decoded, reconstruction.motion
        prediction = decoded.prediction[:, :, 0]
        inputs = LossInputs(driving, randomness.sample, batch.get("flow"), batch.get("has_flow"))
        parts: dict[str, tuple[float, Tensor]] = {}

        def add(name: str, value: Callable[[], Tensor]) -> None:
            weight = getattr(self.config, f"{name}_weight")
            if weight > 0:
                parts[name] = weight, value()

        add("l1", lambda: multiscale_l1(prediction, driving))
        add("warped", lambda: multiscale_l1(decoded.warped[:, :, 0], driving))
        add("inpainted", lambda: multiscale_l1(decoded.inpainted[:, :, 0], driving))
        add("ssim", lambda: ssim_loss(prediction, driving))
        for name in AUXILIARY_LOSSES:
            add(name, lambda name=name: reconstruction.losses[name](inputs))
        motions = [motion] if reconstruction.refined is None else [motion, reconstruction.refined]
        add("smoothness", lambda: torch.stack([edge_aware_smoothness(m.flow, driving.unsqueeze(2)) for m in motions]).mean())
        add("occlusion", lambda: 1 - motion.occlusion.float().mean())
        if self.perceptual is not None:
            add("perceptual", partial(self.perceptual.to(driving.device), prediction, driving))
        total = torch.stack([weight * value for weight, value in parts.values()]).sum()
        return {"loss": total, **{name: value for name, (_, value) in parts.items()}}

    def panel(self, module: nn.Module) -> np.ndarray:
        """Draw source, driving, prediction, warped, flow and occlusion of fixed pairs, one row each: (H', W', 3) uint8."""
        assert isinstance(module, LatentFlowAutoencoder)
        device = module.device
        rows = []
        for index in panel_clips(self.dataset.cache, PANEL_PAIRS):
            clip = self.dataset.cache.clip(index)
            pair = torch.from_numpy(np.stack([clip[0], clip[len(clip) // 2]])).permute(0, 3, 1, 2).to(device).float() / 255
            result = module(pair[:1], pair[1:])
            motion = module.upsample_motion(pair[:1], result.refined or result.motion)
            flow = motion.flow[0, :, 0].permute(1, 2, 0).float().cpu().numpy()
            flow = flow_to_color(in_half_widths(flow, motion.size))
            pictures = [pair[0], pair[1], result.decoded.prediction[0, :, 0], result.decoded.warped[0, :, 0]]
            tiles = [_to_bytes(picture) for picture in pictures]
            tiles += [flow, _to_bytes(motion.occlusion[0, :, 0].expand(3, -1, -1))]
            rows.append(np.concatenate(tiles, axis=1))
        return np.concatenate(rows, axis=0)


def train_autoencoder(
    preset: Preset,
    data: str | Path,
    out: Path,
    *,
    init: str | Path | None = None,
    cache_gb: float | None = None,
    report: Callable[[StepReport], None] | None = None,
    summary: Callable[[RunSummary], None] | None = None,
    progress: Progress | None = None,
    stop_after: int | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """Train stage 1 of `preset` on the training clips of `data`; return the last checkpoint in the run folder `out`.

    Args:
        data: clip data set, or folder or URL of shards.
        init: bundled name, or model, pipeline or run folder whose weights to start from; also of smaller images.
        cache_gb: see `find_clips`.
        report: called with the metrics every `log_steps`.
        summary: called before the first step, and again once time and memory can be estimated.
        progress: called while clips are decoded and, with `tracking_distillation_weight`, their motion is estimated.
        stop_after: end this call at that step, with a checkpoint.
        cache_dir: folder for what is computed of the clips, see `find_clips`.

    Raises:
        UserError: settings that do not fit the data, the run in `out` or each other, or another process that uses `out`.
        FileNotFoundError: no such data set, weights or model.
    """
    out = expand_home(out)
    config = preset.autoencoder_training
    if config.tracking_distillation_weight > 0 and init is None:
        raise UserError("tracking_distillation_weight needs init, the model whose tracked motion to learn from; got None")
    source = find_clips(data, cache_gb, cache_dir=cache_dir)
    settings = {
        "stage": AutoencoderTask.name,
        "data": data_setting(data),
        "init": str(init) if init else None,
        "preset": to_json(preset),
    }
    with open_run(out, settings, batch_size=config.optimization.batch_size, free=STAGE2_SETTINGS) as run:
        module = _make_autoencoder(preset, init, resumed=bool(find_checkpoints(out)))
        teacher_motion, state = None, process_state()
        with state.local_main_process_first():  # the others find the caches that it makes
            cache = open_training_clips(source, preset.size, preset.fit, config.background, progress)
            if config.tracking_distillation_weight > 0:
                teacher_motion = _tracked_motion(module, preset, cache, state.device, progress)
        task = AutoencoderTask(module, config, cache, teacher_motion)
        run.write()
        return train(task, config.optimization, out, report=report, summary=summary, stop_after=stop_after)


def _make_autoencoder(preset: Preset, init: str | Path | None, *, resumed: bool) -> LatentFlowAutoencoder:
    """Return the network to train, with the weights of `init` where it is given and they are needed.

    A resumed run has weights of its own, but its tracking teacher is still made from those of `init`.
    """
    config = preset.autoencoder_training
    with torch.random.fork_rng():
        torch.manual_seed(config.optimization.seed)
        module = LatentFlowAutoencoder(**to_json(preset.autoencoder))
    if init is not None and (config.tracking_distillation_weight > 0 or not resumed):
        start = LatentFlowAutoencoder.from_pretrained(find_model(find_folder(init), AutoencoderTask.name))
        load_exactly(module, grown_weights(module, start), str(init))
    return module


def _tracked_motion(
    module: LatentFlowAutoencoder, preset: Preset, clips: TrainingClips, device: torch.device | None, progress: Progress | None
) -> MotionCache:
    """Return the motion of all clips as a model of the same weights that tracks limbs from frame to frame estimates it."""
    if not isinstance(clips, ClipCache):
        weight = preset.autoencoder_training.tracking_distillation_weight
        raise UserError(f"tracking_distillation_weight must be 0 for clips in shards, whose motion is not cached; got {weight:g}")
    settings = replace(preset.autoencoder, predictor=preset.autoencoder.predictor.tracking_teacher())
    teacher = LatentFlowAutoencoder(**to_json(settings))
    teacher.load_state_dict(module.state_dict())
    teacher.to(device)
    bf16 = uses_bf16(preset.autoencoder_training.optimization.mixed_precision, teacher.device)
    return open_motion_cache(teacher, clips, bf16=bf16, progress=progress)


def data_setting(data: str | Path) -> str:
    """Return how a run stores its data: a URL as it is, a path without ~."""
    return str(data) if is_url(str(data)) else str(expand_home(data))


def open_training_clips(
    source: ClipSource, size: Size, fit: Fit, background: Background, progress: Progress | None
) -> TrainingClips:
    """Return the training clips of a source, with alpha for random backgrounds.

    Raises:
        UserError: random backgrounds for clips that are all opaque, on which they have no effect; and as `open_cache`.
    """
    keep_alpha = background == "random"
    clips = source.open(size, fit, keep_alpha=keep_alpha, progress=progress)
    check(not keep_alpha or clips.has_alpha(), "background", background, f"white, as no training clip in {source.name} has alpha")
    return clips


def panel_clips(clips: TrainingClips, count: int) -> list[int]:
    """Return `count` indices of usable clips, spread over all of them or, with shards, over the first shard."""
    num = len(clips) if clips.shard_sizes is None else clips.shard_sizes[0]
    return [clips.usable(int(index)) for index in np.linspace(0, num - 1, count)]


def _perceptual_loss(config: AutoencoderTrainingConfig) -> PerceptualLoss | None:
    if config.perceptual_weights_path is None:
        return None
    return PerceptualLoss(Path(config.perceptual_weights_path), num_scales=config.perceptual_scales)


def _to_bytes(image: Tensor) -> np.ndarray:
    """Convert an image (3, H, W) in [0, 1] to (H, W, 3) uint8."""
    pixels = rearrange(image.float().clamp(0, 1), "c h w -> h w c") * 255
    return pixels.round().byte().cpu().numpy()
