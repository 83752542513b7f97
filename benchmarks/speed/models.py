"""The models and inputs of the timed operations.

Shapes: image (b, 3, S, S) and video (b, 3, t, S, S) in [0, 1] · motion sample (b, 3, t, h, w).
"""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.textbook.autoencoder import PlainAutoencoder
from benchmarks.speed.textbook.unet import PlainUNet
from lfdm.config.presets import Preset, get_preset
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import ClipRecord, write_index
from lfdm.data.video import write_video
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline

VGG19_WIDTHS = (64, 128, 256, 512, 512)


def benchmark_preset(name: str) -> Preset:
    """Return a preset by name; `tiny` is a miniature of `flow64`."""
    if name != "tiny":
        return get_preset(name)
    preset = get_preset("flow64")
    predictor = replace(preset.autoencoder.predictor, channels=(8, 8, 16, 16), match_channels=8)
    autoencoder = replace(preset.autoencoder, channels=8, max_channels=16, num_res_blocks=1, predictor=predictor)
    unet = replace(
        preset.unet,
        latent_channels=16,
        condition_dim=8,
        dim=8,
        channel_multipliers=(1, 2),
        num_heads=2,
        head_dim=8,
        spatial_attention_levels=(True, False),
        temporal_attention_levels=(True, True),
    )
    return replace(preset, name="tiny", image_size=32, num_frames=3, autoencoder=autoencoder, unet=unet)


class Models:
    """A pipeline with random weights, the plain forms of both stages, and their inputs.

    Args:
        dtype: type of weights and inputs; training keeps float32 weights and uses autocast.
        compiled: whether the fast forms use torch.compile.
        folder: for clips and VGG-19's weights (random, since only their cost matters).
    """

    def __init__(self, preset: Preset, device: torch.device, folder: Path, *, dtype: torch.dtype, compiled: bool = False) -> None:
        self.preset, self.device, self.folder, self.dtype = preset, device, folder, dtype
        self.label = "None" if preset.diffusion.condition == "text" else "wave"
        self.pipeline = LatentFlowPipeline.from_preset(preset, () if self.label == "None" else [self.label])
        self.pipeline.set_progress_bar_config(disable=True)
        _make_motion_visible(self.pipeline.autoencoder)
        self.pipeline.to(device)
        self.random = torch.Generator(device).manual_seed(0)
        self.compiled = compiled

    def plain_unet(self) -> PlainUNet:
        assert isinstance(self.pipeline.unet, MotionUNet3D)
        return PlainUNet(self.pipeline.unet).eval()

    def plain_stage1(self) -> PlainAutoencoder:
        return PlainAutoencoder(self.pipeline.autoencoder).eval()

    def for_inference(self, *, cast: bool = True) -> "Models":
        """Return a copy of the models, cast to `dtype` (if `cast`) and compiled (if `compiled`)."""
        models = copy.copy(self)
        models.pipeline = copy.deepcopy(self.pipeline)
        for module in (models.pipeline.autoencoder, models.pipeline.unet, models.pipeline.condition):
            module.to(self.dtype if cast else torch.float32)
        if self.compiled:
            autoencoder = models.pipeline.autoencoder
            models.pipeline.unet.compile()
            for name in ("encode", "decode", "estimate_motion"):
                setattr(autoencoder, name, torch.compile(getattr(autoencoder, name)))
        return models

    def images(self, batch: int) -> Tensor:
        return self.videos(batch)[:, :, 0]

    def videos(self, batch: int) -> Tensor:
        return torch.rand(batch, 3, self.preset.num_frames, *self.preset.size, generator=self.random, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, device=self.device)

    def conditions(self, batch: int) -> Tensor:
        return self.normal(batch, self.preset.unet.condition_dim)

    def samples(self, batch: int) -> Tensor:
        return self.normal(batch, 3, self.preset.num_frames, *self.preset.size.cells(self.pipeline.autoencoder.stride))

    def motions(self, batch: int) -> Motion:
        """Return random smooth motion, so that warping reads memory as for a real one."""
        coarse = 0.1 * self.normal(batch * self.preset.num_frames, 3, 4, 4)
        cells = self.preset.size.cells(self.pipeline.autoencoder.stride)
        fine = nn.functional.interpolate(coarse, size=cells, mode="bilinear", align_corners=False)
        fine = fine.unflatten(0, (batch, -1)).transpose(1, 2)
        return Motion(fine[:, :2], fine[:, 2:].sigmoid(), self.pipeline.autoencoder.corners)

    @cached_property
    def clips(self) -> ClipCache:
        """Two clips of noise."""
        return random_clips(self.folder / "clips", self.preset, num_clips=2, label=self.label)

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.dtype != torch.float32 else nullcontext()


def _make_motion_visible(autoencoder: nn.Module) -> None:
    """Randomise heads that are initialised with zeros, which would predict no motion."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            if "head" in name and parameter.ndim > 1 and not parameter.any():
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))


def random_clips(folder: Path, preset: Preset, *, num_clips: int, label: str) -> ClipCache:
    """Return a decoded data set of lossless noise, made on the first call."""
    (height, width), frames = preset.size, preset.num_frames
    rng = np.random.default_rng(0)
    records = []
    for index in range(num_clips):
        path = f"clips/{index}.avi"
        if not (folder / path).exists():
            write_video(folder / path, rng.integers(0, 256, (frames, height, width, 3), np.uint8), fps=preset.fps)
        records.append(
            ClipRecord(
                path=path,
                label=label,
                subject=str(index),
                split="train",
                frames=frames,
                fps=preset.fps,
                width=width,
                height=height,
            )
        )
    write_index(folder, records)
    return open_cache(folder, records, preset.size, preset.fit)


def write_random_vgg19(path: Path, widths: tuple[int, ...] = VGG19_WIDTHS) -> Path:
    """Write random VGG-19 convolutions under torchvision's names, `features.N` (N counts ReLUs and poolings, too)."""
    generator, state, position, before = torch.Generator().manual_seed(0), {}, 0, 3
    for width, count in zip(widths, (2, 2, 4, 4, 4), strict=True):
        for _ in range(count):
            state[f"features.{position}.weight"] = (
                torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
            )
            state[f"features.{position}.bias"] = torch.zeros(width)
            before, position = width, position + 2
        position += 1
    torch.save(state, path)
    return path
