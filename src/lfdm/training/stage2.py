"""Training of stage 2: diffusion of the motion that stage 1 estimates in the training clips (LFDM section 3.3)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.diffusion import PredictionType
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.config.training import DiffusionTrainingConfig
from lfdm.config.video import Fit, Size
from lfdm.data.cache import ClipCache
from lfdm.data.clips import ClipDataset
from lfdm.data.frame_indices import uniform_indices
from lfdm.data.index import NULL_LABEL
from lfdm.data.progress import Progress
from lfdm.data.sharded_clips import ShardedClips
from lfdm.data.training_clips import ClipSource, TrainingClips, find_clips
from lfdm.denoiser.network import DenoiserNetwork
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.process import add_noise, diffusion_loss, sample_timesteps
from lfdm.diffusion.schedulers import predicted_by
from lfdm.errors import UserError
from lfdm.folders.files import expand_home
from lfdm.folders.run_folder import MODEL_DIR, find_checkpoints, find_layout
from lfdm.folders.sources import find_folder
from lfdm.motion.codec import MotionCodec
from lfdm.motion.codecs import make_codec
from lfdm.motion.tracks import near_tracks
from lfdm.pipeline.folder import load_components, read_index
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.batches import BatchRandomness
from lfdm.training.encoded_clips import EncodedClips, EncodedDataset, open_encoded_clips, stage2_jitter
from lfdm.training.encoded_shards import open_encoded_shards
from lfdm.training.loop import train
from lfdm.training.motion_cache import CachedMotions, MotionStore, to_motion
from lfdm.training.optimization import uses_bf16
from lfdm.training.processes import process_state
from lfdm.training.reports import RunSummary, StepReport
from lfdm.training.run import open_run
from lfdm.training.stage1 import data_setting, open_training_clips, panel_clips
from lfdm.training.starting import StartingWeights, load_autoencoder

TRACK_LOSS_WEIGHT = 3.0
"""Additional weight in the loss of cells that are next to tracks, where a few cells decide whether a limb arrives."""
PANEL_CLIPS = 4
"""Videos in a sample panel."""
STAGE1_SETTINGS = ("preset.autoencoder_training",)
"""Settings that stage 2 does not depend on, so that a resumed run may change them."""


class ConditionedUNet(nn.Module):
    """A U-Net and its conditions, which are trained with it if the null condition or the pooling of text is learned."""

    def __init__(self, unet: DenoiserNetwork, condition: ConditionEncoder) -> None:
        super().__init__()
        self.unet, self.condition = unet, condition

    def forward(self, sample: Tensor, timesteps: Tensor, rows: Tensor, latent: Tensor, tracks: Tensor | None = None) -> Tensor:
        """sample (b, ...), timesteps (b,), rows (b,) of the condition table (-1 = null), latent (b, C, h, w) -> like sample.

        `tracks` are for networks with `track_inputs`.
        """
        inputs = {} if tracks is None else {"tracks": tracks}
        return self.unet(sample, timesteps, self.condition.look_up(rows), latent, **inputs)


class DiffusionTask:
    """The training task of the denoiser network of a pipeline."""

    name = "unet"

    def __init__(
        self, pipeline: LatentFlowPipeline, config: DiffusionTrainingConfig, clips: TrainingClips, encoded: EncodedClips | None
    ) -> None:
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)  # of panels
        self.module = ConditionedUNet(pipeline.unet, pipeline.condition)
        self.prediction_type: PredictionType = predicted_by(pipeline.scheduler)
        self.config = config
        if self.config.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        self.clips = clips
        self.num_frames: int = pipeline.config["num_frames"]
        self.rows = torch.tensor([pipeline.condition.index(_condition_of(label, config)) for label in clips.labels])
        self.dataset = self._dataset(encoded)

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the U-Net, and the condition if it learns."""
        assert isinstance(module, ConditionedUNet)
        has_learned = any(True for _ in module.condition.parameters())  # null condition or pooling
        return {self.name: module.unet, **({"condition": module.condition} if has_learned else {})}

    def _dataset(self, encoded: EncodedClips | None) -> EncodedDataset | ClipDataset:
        config = self.config
        if encoded is not None:
            with_tracks = self.pipeline.unet.track_inputs
            return EncodedDataset(encoded, config, num_frames=self.num_frames, with_tracks=with_tracks)
        return ClipDataset(
            self.clips,
            num_frames=self.num_frames,
            sampling=config.frame_sampler,
            jitter=stage2_jitter(config),
            flip_probability=config.flip_probability,
            seed=config.optimization.seed,
        )

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        """Return the weighted denoising loss of a batch.

        Args:
            batch: `label` (b,), places in the labels of the clips, and either `latent` (b, C, h, w) with `motion`
                (b, 3, t, h, w), both float16, or `video` (b, 3, t, H, W) uint8, which stage 1 sees
                here; `tracks` (b, TRACK_CHANNELS, t, h, w) float16, if used.
        """
        kind, device = self.prediction_type, randomness.generator.device
        with torch.no_grad():
            clean, latent = self.observe(batch, device)
            rows = self.drop_conditions(batch["label"], randomness)
        timesteps = randomness.sample(lambda size, generator: sample_timesteps(size, kind, generator=generator))
        shape = clean.shape[1:]
        noise = randomness.sample(lambda size, generator: torch.randn(size, *shape, generator=generator, device=device))
        tracks = batch["tracks"].float() if "tracks" in batch else None
        prediction = module(add_noise(clean, noise, timesteps, kind), timesteps, rows, latent, tracks)
        weights, gamma = self.entry_weights(clean, tracks), self.config.min_snr_gamma
        loss = diffusion_loss(prediction, clean, noise, timesteps, prediction_type=kind, min_snr_gamma=gamma, weights=weights)
        return {"loss": loss.mean()}

    def entry_weights(self, clean: Tensor, tracks: Tensor | None = None) -> Tensor | None:
        """Return the weights of the entries of clean samples in the loss, broadcasting against them; None = all the same."""
        if tracks is not None:
            return 1 + TRACK_LOSS_WEIGHT * near_tracks(tracks)
        energy = self.pipeline.motion_codec.energy(*clean.shape[-2:]) if self.config.energy_exponent else None
        if energy is None:
            return None
        weights = energy.to(clean.device) ** self.config.energy_exponent
        return weights / weights.mean()

    def observe(self, batch: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the clean sample (b, *codec.sample_shape(t, h, w)) and the image latent (b, C, h, w)."""
        autoencoder, codec = self.pipeline.autoencoder, self.pipeline.motion_codec
        if autoencoder.device != device:
            autoencoder.to(device)
        if "motion" in batch:
            return codec.encode(to_motion(batch["motion"], codec)).float(), batch["latent"].float()
        video = batch["video"].float() / 255
        image = video[:, :, 0]
        return codec.encode(autoencoder.estimate_motion(image, video)).float(), autoencoder.encode(image).latent

    def drop_conditions(self, label: Tensor, randomness: BatchRandomness) -> Tensor:
        """Return the condition rows (b,) of labels (b,), some of them replaced by -1, the null condition."""
        self.rows = self.rows.to(label.device)  # in the first step; later it is there
        chances = randomness.sample(lambda size, generator: torch.rand(size, generator=generator, device=generator.device))
        return self.rows[label].masked_fill(chances < self.config.condition_dropout, -1)

    def panel(self, module: nn.Module) -> np.ndarray:
        """Return a clip (t, 2 H, n W, 3): real clips above those generated from their first frames and labels."""
        assert isinstance(module, ConditionedUNet)
        clips, pipeline = self.clips, self.pipeline
        chosen = panel_clips(clips, PANEL_CLIPS)
        pipeline.unet, pipeline.condition = module.unet, module.condition
        try:
            result = pipeline(
                [clips.clip(i)[0] for i in chosen],
                [_condition_of(clips.label(i), self.config) for i in chosen],
                num_inference_steps=self.config.panel_inference_steps,
                generator=[torch.Generator().manual_seed(i) for i in chosen],
                output_type="uint8",
            )
        finally:
            pipeline.unet, pipeline.condition = self.module.unet, self.module.condition
        real = [clips.clip(i)[uniform_indices(clips.num_frames(i), self.num_frames)] for i in chosen]
        return rearrange(np.stack([real, np.asarray(result.frames)]), "row n t h w c -> t (row h) (n w) c")


def train_diffusion(
    preset: Preset,
    data: str | Path,
    autoencoder: str | Path,
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
    """Train stage 2 of `preset` on the training clips of `data` and return the last checkpoint in the run folder `out`.

    `LatentFlowPipeline.from_pretrained` loads `out` as soon as it holds a checkpoint. Text embeddings of the labels are made
    once, before training. Clips with the label "None", and with `condition_dropout=1` all clips, train the null condition.

    Args:
        data: clip data set, or folder or URL of shards.
        autoencoder: bundled name, or stage-1 run, model or pipeline folder.
        init: bundled name, or U-Net, pipeline or run folder to start from: its weights, the embeddings of the labels that
            it knows, and its learned null condition and pooling.
        cache_gb: see `find_clips`.
        report: called with the metrics every `log_steps`.
        summary: called before the first step, and again once time and memory can be estimated.
        progress: called while clips are decoded, their motion is estimated and their first frames are encoded.
        stop_after: end this call at that step, with a checkpoint.
        cache_dir: folder for what is computed of the clips, see `find_clips`.

    Raises:
        UserError: settings that contradict the data, the autoencoder, the run in `out` or each other, or a text encoder that
            is not available, or another process that uses `out`.
        FileNotFoundError: no such data set or model.
        MissingExtraError: text conditions without transformers.
    """
    out, source = expand_home(out), find_clips(data, cache_gb, cache_dir=cache_dir)
    paths = {"data": data_setting(data), "autoencoder": str(autoencoder), "init": str(init) if init else None}
    settings = {"stage": DiffusionTask.name, **paths, "preset": to_json(preset)}
    model, training = out / MODEL_DIR, preset.diffusion_training
    with open_run(out, settings, batch_size=training.optimization.batch_size, free=STAGE1_SETTINGS) as run:
        begun = model.is_dir()
        stage1 = load_autoencoder(model if begun else autoencoder, preset).to(process_state().device)
        # A run with a checkpoint does not need the weights that it started from.
        start = None if init is None or find_checkpoints(out) else StartingWeights.load(find_folder(init), preset)
        labels = source.split_labels("train")
        condition = _make_condition(preset, labels, model / "condition", None if start is None else start.condition)
        fitting = {"size": preset.size, "fit": preset.fit}
        clips, encoded = open_caches(stage1, training, source, **fitting, progress=progress)
        codec = _load_codec(model) if begun else _measured_codec(preset, stage1, None if encoded is None else encoded.motion)
        pipeline = _build_pipeline(preset, stage1, condition, codec, None if start is None else start.unet)
        run.write(pipeline)
        task = DiffusionTask(pipeline, training, clips, encoded)
        return train(task, training.optimization, out, report=report, summary=summary, stop_after=stop_after)


def _condition_of(label: str, training: DiffusionTrainingConfig) -> str | None:
    """Return the condition that clips with this label train; None = the null condition."""
    return None if label == NULL_LABEL or training.condition_dropout == 1 else label


def open_caches(
    stage1: LatentFlowAutoencoder,
    training: DiffusionTrainingConfig,
    source: ClipSource,
    *,
    size: Size,
    fit: Fit,
    progress: Progress | None = None,
) -> tuple[TrainingClips, EncodedClips | None]:
    """Return the decoded clips and, with `cache_motion`, what stage 1 sees of them; the first call makes them.

    Every process of a training calls this. One process of each machine makes the caches of a clip data set; those of shards are
    shared out among all.
    """
    options = {"bf16": uses_bf16(training.optimization.mixed_precision, stage1.device)}
    encoded = None
    with process_state().local_main_process_first():  # the other processes find its caches
        clips = open_training_clips(source, size, fit, training.background, progress)
        if training.cache_motion and isinstance(clips, ClipCache):
            encoded = open_encoded_clips(stage1, clips, training, **options, progress=progress)
    if training.exact_motion and isinstance(clips, ShardedClips):
        raise UserError("exact_motion must be False for shards; got True")
    if training.cache_motion and isinstance(clips, ShardedClips):
        encoded = open_encoded_shards(stage1, clips, training, **options, progress=progress)
    return clips, encoded


def _make_condition(preset: Preset, labels: Sequence[str], stored: Path, known: ConditionEncoder | None) -> ConditionEncoder:
    """Return the conditions of a run that has begun (`stored`), or new ones for the labels of clips that start from `known`."""
    if stored.is_dir():
        return ConditionEncoder.from_pretrained(stored)
    conditions = [_condition_of(label, preset.diffusion_training) for label in labels]
    condition = _new_condition(preset, [name for name in conditions if name is not None], known)
    if known is not None:
        condition.start_from(known)
    return condition


def _new_condition(preset: Preset, names: list[str], known: ConditionEncoder | None) -> ConditionEncoder:
    config, dim = preset.diffusion, preset.unet.condition_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.diffusion_training.optimization.seed)
        if config.condition == "labels" or not names:
            return ConditionEncoder.from_labels(names, dim, learned_null=config.learned_null, known=known)
        encoder = ConditionEncoder.from_text(
            names, config.text_encoder, learned_null=config.learned_null, pooling=config.text_pooling
        )
    if encoder.dim != dim:
        raise UserError(f"unet.condition_dim must be {encoder.dim}, as {config.text_encoder} gives; got {dim}")
    return encoder


def _load_codec(folder: Path) -> MotionCodec:
    """Load the codec of a pipeline folder, whatever its class."""
    layout = find_layout(folder)
    classes, _ = read_index(layout.index, LatentFlowPipeline)
    codec = {"motion_codec": classes["motion_codec"]}
    return load_components(layout, codec, dtype=torch.float32, device="cpu")["motion_codec"]


def _measured_codec(preset: Preset, stage1: LatentFlowAutoencoder, motion: MotionStore | None) -> MotionCodec:
    """Return the codec of a preset with the statistics of the motion that training sees, mirrored clips included."""
    codec = make_codec(preset.diffusion, corners=stage1.corners)
    if motion is None or not preset.diffusion.normalize:
        return codec
    motions = CachedMotions(motion, preset.diffusion_training.flip_probability > 0)
    return codec.measured(motions, clamp=preset.diffusion.clamp_to_range)


def _build_pipeline(
    preset: Preset,
    stage1: LatentFlowAutoencoder,
    condition: ConditionEncoder,
    codec: MotionCodec,
    start: DenoiserNetwork | None,
) -> LatentFlowPipeline:
    """Return the pipeline to train; its U-Net has the weights of `start`, and from the seed those that `start` lacks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.diffusion_training.optimization.seed)
        unet = MotionUNet3D(**to_json(preset.unet))
    if start is not None:
        unet.load_state_dict({**unet.state_dict(), **start.state_dict()})
    return LatentFlowPipeline.from_components(preset, stage1, unet, condition, codec)
