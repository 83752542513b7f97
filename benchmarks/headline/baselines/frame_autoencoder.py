"""First stage of LDM: an `AutoencoderKL` of single frames, trained on the frames of stage 1's pairs, and its latents."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn

from benchmarks.experiment.evaluation import training_clips
from benchmarks.headline.baselines.config import FrameAutoencoderConfig
from benchmarks.headline.baselines.space import decode_latents, encode_frames
from lfdm.autoencoder.convolution import channels_last_kernels
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.data.augmentation import ColorJitter, PairAugmentation
from lfdm.data.cache import ClipCache
from lfdm.data.clips import PairDataset
from lfdm.folders.files import temporary_path
from lfdm.folders.run_folder import check_run, find_model, prepare_run
from lfdm.training.batches import BatchRandomness
from lfdm.training.loop import train
from lfdm.training.losses.image import multiscale_l1, ssim_loss
from lfdm.training.optimization import uses_bf16
from lfdm.training.reports import StepReport

MODEL_NAME = "autoencoder"
LATENT_CHANNELS = 4
PANEL_FRAMES = 8
_CHUNK_FRAMES = 64


class _Frames(nn.Module):
    """frames (n, 3, H, W), noise (n, c, h, w) -> (reconstruction (n, 3, H, W), KL divergence ())."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.autoencoder.encode(2 * frames - 1).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        return decode_latents(self.autoencoder, latents.mean + latents.std * noise), latents.kl().mean() / noise[0].numel()


class FrameAutoencoderTask:
    """The training task of an `AutoencoderKL` on both frames of stage 1's pairs."""

    def __init__(self, autoencoder: AutoencoderKL, config: FrameAutoencoderConfig, preset: Preset, clips: ClipCache) -> None:
        self.module = _Frames(autoencoder)
        self.config = config
        training = preset.autoencoder_training
        jitter = ColorJitter(amounts=training.color_jitter)
        self.dataset = PairDataset(
            clips,
            PairAugmentation(swap_probability=0.0, flip_probability=training.flip_probability, jitter=jitter),
            seed=training.optimization.seed,
            distinct=training.distinct_frames,
        )

    def models(self, module: nn.Module) -> dict[str, nn.Module]:
        assert isinstance(module, _Frames)
        return {MODEL_NAME: module.autoencoder}

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        frames = torch.cat((batch["source"], batch["driving"])).float() / 255
        stride = 2 ** (len(self.config.channels) - 1)
        shape = (2, LATENT_CHANNELS, frames.shape[-2] // stride, frames.shape[-1] // stride)
        pairs = randomness.sample(lambda size, generator: torch.randn(size, *shape, generator=generator, device=generator.device))
        restored, divergence = module(frames, pairs.transpose(0, 1).flatten(0, 1))
        l1, ssim = multiscale_l1(restored, frames), ssim_loss(restored, frames)
        return {
            "loss": l1 + self.config.ssim_weight * ssim + self.config.kl_weight * divergence,
            "l1": l1,
            "ssim": ssim,
            "kl": divergence,
        }

    def panel(self, module: nn.Module) -> np.ndarray:
        """Render an image (2 S, n S, 3): frames above their reconstructions."""
        assert isinstance(module, _Frames)
        clips = self.dataset.cache
        chosen = np.linspace(0, len(clips) - 1, PANEL_FRAMES).astype(int)
        real = np.stack([clips.clip(int(i))[0] for i in chosen])
        frames = torch.from_numpy(real).permute(0, 3, 1, 2).to(module.autoencoder.device).float() / 255
        decoded = decode_latents(module.autoencoder, encode_frames(module.autoencoder, frames)).clamp(0, 1)
        restored = rearrange((decoded * 255).round().byte().cpu().numpy(), "n c h w -> n h w c")
        return rearrange(np.stack((real, restored)), "row n h w c -> (row h) (n w) c")


def build_frame_autoencoder(config: FrameAutoencoderConfig, *, seed: int) -> AutoencoderKL:
    """Build an auto-encoder without attention, initialised from `seed`."""
    levels = len(config.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
            block_out_channels=config.channels,  # pyright: ignore[reportArgumentType] - annotated as one number each
            layers_per_block=config.layers_per_block,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=config.num_groups,
            mid_block_add_attention=False,
        )


def frame_autoencoder_task(config: FrameAutoencoderConfig, preset: Preset, clips: ClipCache) -> FrameAutoencoderTask:
    """Return the training task of a new auto-encoder."""
    autoencoder = build_frame_autoencoder(config, seed=preset.autoencoder_training.optimization.seed)
    return FrameAutoencoderTask(autoencoder, config, preset, clips)


def train_frame_autoencoder(
    config: FrameAutoencoderConfig,
    preset: Preset,
    data: Path,
    out: Path,
    *,
    report: Callable[[StepReport], None] | None = None,
) -> Path:
    """Train with stage 1's optimizer settings in `preset`; resumes. Returns the last checkpoint in `out`."""
    settings = {"stage": "frame autoencoder", "data": str(data), "model": to_json(config), "preset": to_json(preset)}
    check_run(out, settings)
    task = frame_autoencoder_task(config, preset, training_clips(preset, data))
    prepare_run(out, settings)
    return train(task, preset.autoencoder_training.optimization, out, report=report)


def load_frame_autoencoder(run: Path, *, device: str = "cpu") -> AutoencoderKL:
    """Load the newest averaged weights of a run, frozen, in evaluation mode."""
    autoencoder = AutoencoderKL.from_pretrained(find_model(run, MODEL_NAME)).eval().requires_grad_(False)
    nn.Module.to(autoencoder, device)
    return autoencoder


@torch.inference_mode()
def open_latents(autoencoder: AutoencoderKL, clips: ClipCache, path: Path) -> np.ndarray:
    """Open the latents of all frames of `clips`: a read-only memory map (n, c, h, w) float16, cached at `path`."""
    if not path.exists():
        bf16 = uses_bf16("auto", autoencoder.device)
        if bf16:
            channels_last_kernels(autoencoder)
        stride = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)
        temporary = temporary_path(path)
        try:
            shape = (clips.offsets[-1], autoencoder.config["latent_channels"], *clips.size.cells(stride))
            latents = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            for index in range(len(clips)):
                frames = torch.from_numpy(np.array(clips.clip(index))).permute(0, 3, 1, 2).to(autoencoder.device).float() / 255
                with torch.autocast(autoencoder.device.type, torch.bfloat16, enabled=bf16):
                    parts = [encode_frames(autoencoder, part) for part in frames.split(_CHUNK_FRAMES)]
                latents[clips.offsets[index] : clips.offsets[index + 1]] = torch.cat(parts).half().cpu().numpy()
            latents.flush()
            del latents
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")
