"""Stage 1: the latent flow auto-encoder (LFDM, arXiv 2303.13744, section 3.2).

The encoder runs once on the source image. A motion predictor compares the image with driving frames. The motion is brought to
the size of every scale (`lfdm.autoencoder.upsampling`). The decoder warps the source's features at every scale by it, keeps
what the occlusion map marks as visible and inpaints the rest.

Shapes: image (b, 3, H, W) and video (b, 3, t, H, W) in [0, 1] · latent (b, C, h, w), h = H / stride · see `lfdm.motion.motion`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last, convolve_to_few
from lfdm.autoencoder.layers import DownBlock, ResBlock, SameBlock, UpBlock
from lfdm.autoencoder.predictors.predictor import AuxiliaryLoss, MotionEstimate
from lfdm.autoencoder.predictors.registry import build_predictor
from lfdm.autoencoder.upsampling import CONVEX_REACH, Motions, MotionUpsampler, motions_at
from lfdm.config.models import AutoencoderConfig
from lfdm.config.registration import register_to_config
from lfdm.config.serialization import to_json
from lfdm.errors import UserError
from lfdm.folders.components import Model
from lfdm.folders.model_folder import checked_settings
from lfdm.motion.motion import BILINEAR_REACH, Motion
from lfdm.motion.warp import warp

PAPER_PREDICTOR = to_json(AutoencoderConfig().predictor)
"""The default predictor."""


@dataclass(frozen=True, eq=False)
class Features:
    """The decoder's view of a source image."""

    image: Tensor
    """The image (b, 3, H, W)."""
    scales: tuple[Tensor, ...]
    """The encoder's outputs at every scale, full size first."""

    @property
    def latent(self) -> Tensor:
        """The coarsest scale z0, (b, C, h, w)."""
        return self.scales[-1]

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width (h, w) of the latent, and of its motion."""
        return self.latent.shape[-2], self.latent.shape[-1]

    def repeat(self, count: int) -> "Features":
        """Return these features with every image `count` times in a row."""
        if count == 1:
            return self
        return self._each(lambda x: x.repeat_interleave(count, dim=0))

    def samples(self, start: int, stop: int) -> "Features":
        """Return the features of images `start` to `stop` - 1."""
        return self._each(lambda x: x[start:stop])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Features":
        return Features(change(self.image), tuple(change(x) for x in self.scales))


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded frames, each (b, 3, t, H, W) in [0, 1]."""

    prediction: Tensor
    """The blend of the other two by the occlusion map."""
    warped: Tensor
    """The warped source image, without inpainting."""
    inpainted: Tensor
    """The decoder's own image."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One training pass: driving frames rebuilt from the source."""

    decoded: Decoded
    motion: Motion
    """At the latent's size."""
    losses: Mapping[str, AuxiliaryLoss] = field(default_factory=dict)
    """The motion predictor's auxiliary losses by name."""
    refined: Motion | None = None
    """On the predictor's finest grid, where that is another one."""


class LatentFlowAutoencoder(Model):
    """Encoder, motion predictor and decoder; `lfdm.config.models.AutoencoderConfig` documents and checks the arguments.

    Args:
        predictor: settings of the motion predictor as JSON; `type` names it, and what is missing has its default.

    Raises:
        UserError: an argument out of range.
    """

    @register_to_config
    def __init__(
        self,
        *,
        channels: int = 64,
        max_channels: int = 256,
        num_downs: int = 2,
        num_res_blocks: int = 6,
        predictor: Mapping[str, Any] = PAPER_PREDICTOR,  # noqa: ARG002 - read from the registered configuration
        corners: bool = True,
        padding_mode: Literal["zeros", "border"] = "zeros",
        upsampling: Literal["bilinear", "convex"] = "bilinear",
    ) -> None:
        super().__init__()
        settings = checked_settings(AutoencoderConfig, self.config)
        self.register_to_config(predictor=to_json(settings.predictor))  # with its defaults, which may change
        self.size_multiple = settings.size_multiple
        widths = [min(max_channels, channels * 2**i) for i in range(num_downs + 1)]
        self.stride = 2**num_downs
        self.first = SameBlock(3, widths[0])
        self.downs = nn.ModuleList(DownBlock(a, b) for a, b in pairwise(widths))
        self.bottleneck = nn.Sequential(*(ResBlock(widths[-1]) for _ in range(num_res_blocks)))
        self.ups = nn.ModuleList(UpBlock(a, b) for a, b in pairwise(reversed(widths)))
        self.final = nn.Conv2d(widths[0], 3, 7, padding=3)
        self.motion_predictor = build_predictor(
            settings.predictor, stride=self.stride, corners=corners, padding_mode=padding_mode
        )
        self.upsampler = MotionUpsampler(padding_mode=padding_mode) if upsampling == "convex" else None
        self.corners = corners
        self.padding_mode = padding_mode

    def encode(self, image: Tensor) -> Features:
        """Encode a source image (b, 3, H, W) in [0, 1].

        Raises:
            UserError: another shape, or H or W not a multiple of `size_multiple`.
        """
        self._check_image(image, "image", ndim=4)
        x = image.to(self.dtype)
        scales = [self.first(channels_last(x))]
        for down in self.downs:
            scales.append(down(scales[-1]))
        return Features(x, tuple(scales))

    def estimate_motion(self, source: Tensor, driving: Tensor, *, refine: bool = False) -> Motion:
        """Estimate the motion of driving frames relative to the source image, at the latent's size.

        A predictor that tracks takes the frames for successive frames of a video.

        Args:
            source: (b, 3, H, W) in [0, 1].
            driving: (b, 3, H, W), or (b, 3, t, H, W).
            refine: return the motion on the predictor's finest grid instead; `decode` takes both.

        Raises:
            UserError: other shapes, or shapes that differ in batch or image size.
        """
        estimate = self._predict_motion(source, driving)
        return estimate.finest() if refine else estimate.motion

    def estimate_motions(self, source: Tensor, parts: Iterable[Tensor], *, refine: bool = False) -> Iterator[Motion]:
        """Estimate the motion of a long video given in parts (b, 3, t, H, W): part by part, the same as of the whole video.

        Raises:
            UserError: as `estimate_motion`.
        """
        before = None
        for part in parts:
            estimate = self._predict_motion(source, part, before)
            before = part[:, :, -1], estimate.motion.flow[:, :, -1]
            yield estimate.finest() if refine else estimate.motion

    def track_points(self, video: Tensor) -> Tensor:
        """Track the points of frame 0 through a video (b, 3, t, H, W): displacement (b, 2, t, h, w) in half images.

        Frame k shows the cell at s at s + displacement. Roles are swapped: every frame in turn is the source of frame 0. Each
        point is matched near where it was one frame earlier, so frames must follow one another.

        Raises:
            UserError: another shape, or a motion predictor that cannot track.
        """
        self._check_image(video, "video", ndim=5)
        return self.motion_predictor.track_points(video.to(self.dtype))

    @property
    def has_regions(self) -> bool:
        """True if the motion predictor has regions (`region_heat`)."""
        return self.motion_predictor.has_regions

    @property
    def upsampling_reach(self) -> float:
        """Distance in cells up to which a cell of the motion influences pixels; see `lfdm.motion.motion.feather`."""
        return BILINEAR_REACH if self.upsampler is None else CONVEX_REACH

    def region_heat(self, video: Tensor) -> Tensor:
        """Return the heat maps (b, K, t, h, w), of peak 1, of the K regions in every frame of a video (b, 3, t, H, W).

        Raises:
            UserError: a motion predictor without regions, or another shape.
        """
        self._check_image(video, "video", ndim=5)
        heat = self.motion_predictor.region_heat(rearrange(video.to(self.dtype), "b c t h w -> (b t) c h w"))
        return rearrange(heat, "(b t) k h w -> b k t h w", b=len(video))

    def upsample_motion(self, image: Tensor, motion: Motion) -> Motion:
        """Return a motion of source images (b, 3, H, W) at their size, as `decode` applies it.

        Raises:
            UserError: as `decode`.
        """
        self._check_motion(motion, image.shape[0])
        size = _size(image)
        return motions_at(self.upsampler, image, motion, [size])[size]

    def decode(self, features: Features, motion: Motion) -> Decoded:
        """Decode frames (b, 3, t, H, W): the source moved by `motion` of any size, all in one batch.

        Raises:
            UserError: a motion of the other coordinate convention, or of another batch size.
        """
        self._check_motion(motion, features.image.shape[0])
        return self._decode(features, self._motions(features, motion))

    def forward(self, source: Tensor, driving: Tensor) -> Reconstruction:
        """Rebuild driving frames (b, 3, H, W) or (b, 3, t, H, W) from the source (b, 3, H, W).

        Where the predictor refines its motion, the first half of the batch is rebuilt from the motion at the latent's size,
        which is what stage 2 generates, and the rest from the refined motion, which transfer uses: both train one decoder.
        """
        estimate = self._predict_motion(source, driving)
        features = self.encode(source)
        if estimate.refine is None:
            return Reconstruction(self.decode(features, estimate.motion), estimate.motion, estimate.losses)
        refined, b = estimate.refine(), len(source)
        parts = [(estimate.motion, 0, b // 2), (refined, b // 2, b)] if self.training else [(refined, 0, b)]
        motions = [
            self._motions(features.samples(start, stop), motion.samples(start, stop))
            for motion, start, stop in parts
            if stop > start
        ]
        together = {size: Motion.concatenate([part[size] for part in motions], dim=0) for size in motions[0]}
        return Reconstruction(self._decode(features, together), estimate.motion, estimate.losses, refined)

    def _motions(self, features: Features, motion: Motion) -> Motions:
        """Return the motion at the size of every scale."""
        return motions_at(self.upsampler, features.image, motion, [_size(x) for x in (features.image, *features.scales)])

    def _decode(self, features: Features, motions: Motions) -> Decoded:
        if not torch.is_autocast_enabled(features.latent.device.type):  # features may come from encoding under autocast
            features = Features(features.image, tuple(x.to(self.dtype) for x in features.scales))
        latent, occlusion = self._warp_scale(features.latent, motions)
        x = self.bottleneck(latent * occlusion)
        x = _blend(x, latent, occlusion)
        for up, skip in zip(self.ups, reversed(features.scales[:-1]), strict=True):
            x = _blend(up(x), *self._warp_scale(skip, motions))
        image, occlusion = self._warp_scale(features.image, motions)
        inpainted = torch.sigmoid(convolve_to_few(x, self.final)).to(image.dtype)
        prediction = _blend(inpainted, image, occlusion)
        b = features.image.shape[0]
        return Decoded(*(rearrange(v, "(b t) c h w -> b c t h w", b=b) for v in (prediction, image, inpainted)))

    def _check_motion(self, motion: Motion, batch: int) -> None:
        if motion.corners != self.corners:
            raise UserError(
                f"motion must have corners={self.corners}, this model's coordinate convention; got corners={motion.corners}"
            )
        if motion.flow.shape[0] != batch:
            raise UserError(f"motion must have the batch size of the source, {batch}; got {len(motion.flow)}")

    def _predict_motion(self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None) -> MotionEstimate:
        self._check_image(source, "source", ndim=4)
        if driving.ndim == 4:
            driving = driving.unsqueeze(2)
        self._check_image(driving, "driving", ndim=5)
        if driving.shape[0] != source.shape[0] or driving.shape[-2:] != source.shape[-2:]:
            raise UserError(f"source {tuple(source.shape)} and driving {tuple(driving.shape)} differ in batch or image size")
        if before is not None:
            before = before[0].to(self.dtype), before[1]
        return self.motion_predictor.predict(source.to(self.dtype), driving.to(self.dtype), before)

    def _warp_scale(self, x: Tensor, motions: Motions) -> tuple[Tensor, Tensor]:
        """Warp `x` (b, c, H, W) by the motion of its size: (b * t, c, H, W), and the occlusion (b * t, 1, H, W)."""
        motion = motions[_size(x)]
        warped = warp(x, motion.grid(), padding_mode=self.padding_mode)
        occlusion = motion.occlusion.to(x.dtype)
        return channels_last(rearrange(warped, "b c t h w -> (b t) c h w")), rearrange(occlusion, "b c t h w -> (b t) c h w")

    def _check_image(self, image: Tensor, name: str, *, ndim: int) -> None:
        layout = "(b, 3, H, W)" if ndim == 4 else "(b, 3, t, H, W)"
        if image.ndim != ndim or image.shape[1] != 3 or 0 in image.shape or not image.is_floating_point():
            raise UserError(f"{name} must be {layout} of floating point in [0, 1]; got {tuple(image.shape)} of {image.dtype}")
        multiple = self.size_multiple
        if image.shape[-1] % multiple or image.shape[-2] % multiple:
            raise UserError(f"{name} height and width must be multiples of {multiple}; got {tuple(image.shape[-2:])}")


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _blend(inpainted: Tensor, warped: Tensor, occlusion: Tensor) -> Tensor:
    """Mix by occlusion, 1 = warped. Under autocast the types may differ: the result has that of `warped`."""
    return torch.lerp(inpainted.to(warped.dtype), warped, occlusion)
