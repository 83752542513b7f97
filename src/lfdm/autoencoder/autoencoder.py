"""Stage 1: the latent flow auto-encoder (LFDM, arXiv 2303.13744, section 3.2).

The encoder describes the source image once; a motion predictor compares it with driving frames; the decoder warps the
source's features at every scale by that motion, keeps what the occlusion map calls visible and paints the rest.

Shapes: image (b, 3, H, W) and video (b, 3, t, H, W) in [0, 1] · latent (b, C, h, w), h = H / stride · see `lfdm.motion.motion`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last, convolve_to_few
from lfdm.autoencoder.layers import DownBlock, ResBlock, SameBlock, UpBlock
from lfdm.autoencoder.predictors.dense import DenseMotion, DenseMotionPredictor
from lfdm.autoencoder.predictors.dense_coarse import CoarseDenseMotionPredictor
from lfdm.autoencoder.predictors.regions import RegionMotion, RegionMotionPredictor, Regions, region_heat
from lfdm.config.models import AutoencoderConfig
from lfdm.errors import UserError
from lfdm.folders.model_folder import StrictLoading, checked_settings
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, warp


@dataclass(frozen=True)
class Features:
    """What the decoder needs of a source image: the image and the encoder's output at every scale, full size first."""

    image: Tensor
    scales: tuple[Tensor, ...]

    @property
    def latent(self) -> Tensor:
        """(b, C, h, w), the coarsest scale: z0."""
        return self.scales[-1]


@dataclass(frozen=True)
class Decoded:
    """`prediction`, `warped` (the source image warped alone) and `inpainted` (before the last blend), each (b, 3, t, H, W)."""

    prediction: Tensor
    warped: Tensor
    inpainted: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """One training pass: driving frames rebuilt from the source, the motion used, and what its predictor is trained by.

    The dense predictor gives `matched`, `match_target` and `match_flow`, the regions predictor `driving_regions`.
    """

    decoded: Decoded
    motion: Motion
    matched: Tensor | None = None
    match_target: Tensor | None = None
    match_flow: Tensor | None = None
    driving_regions: Regions | None = None


class LatentFlowAutoencoder(StrictLoading, ModelMixin, ConfigMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Encoder, motion predictor and decoder; `lfdm.config.models.AutoencoderConfig` documents and checks the arguments.

    Raises:
        UserError: an argument is outside of what is allowed.
    """

    @register_to_config
    def __init__(
        self,
        *,
        channels: int = 64,
        max_channels: int = 256,
        num_downs: int = 2,
        num_res_blocks: int = 6,
        motion: Literal["dense", "regions"] = "regions",
        corners: bool = True,
        padding_mode: Literal["zeros", "border"] = "zeros",
        dense_channels: Sequence[int] = (32, 64, 96, 128, 128),
        dense_match_stride: int = 4,
        dense_match_channels: int = 64,
        dense_max_residual: float = 0.6,
        dense_tracking: float = 0.0,
        num_regions: int = 10,
        region_temperature: float = 0.1,
        region_channels: int = 32,
        region_flow_channels: int = 64,
        region_max_channels: int = 1024,
        region_depth: int = 5,
        region_padding: int = 3,
    ) -> None:
        super().__init__()
        self.size_multiple = checked_settings(AutoencoderConfig, self.config).size_multiple
        widths = [min(max_channels, channels * 2**i) for i in range(num_downs + 1)]
        self.stride = 2**num_downs
        self.first = SameBlock(3, widths[0])
        self.downs = nn.ModuleList(DownBlock(a, b) for a, b in pairwise(widths))
        self.bottleneck = nn.Sequential(*(ResBlock(widths[-1]) for _ in range(num_res_blocks)))
        self.ups = nn.ModuleList(UpBlock(a, b) for a, b in pairwise(reversed(widths)))
        self.final = nn.Conv2d(widths[0], 3, 7, padding=3)
        if motion == "dense":
            sizes: dict[str, Any] = {
                "channels": tuple(dense_channels),
                "stride": self.stride,
                "match_channels": dense_match_channels,
                "max_residual": dense_max_residual,
            }
            if dense_match_stride == 2:
                self.motion_predictor: nn.Module = DenseMotionPredictor(**sizes, tracking=dense_tracking)
            else:
                self.motion_predictor = CoarseDenseMotionPredictor(**sizes)
        else:
            self.motion_predictor = RegionMotionPredictor(
                num_regions=num_regions,
                temperature=region_temperature,
                channels=region_channels,
                flow_channels=region_flow_channels,
                max_channels=region_max_channels,
                depth=region_depth,
                padding=region_padding,
                stride=self.stride,
                corners=corners,
                padding_mode=padding_mode,
            )
        self.corners = corners
        self.padding_mode = padding_mode

    def encode(self, image: Tensor) -> Features:
        """Describe a source image once.

        Args:
            image: (b, 3, H, W) in [0, 1].

        Raises:
            UserError: another shape, or H or W not a multiple of `size_multiple`.
        """
        self._check_image(image, "image", ndim=4)
        x = image.to(self.dtype)
        scales = [self.first(channels_last(x))]
        for down in self.downs:
            scales.append(down(scales[-1]))
        return Features(x, tuple(scales))

    def estimate_motion(self, source: Tensor, driving: Tensor) -> Motion:
        """Motion of driving frames against the source image, at the latent's size.

        Where `dense_tracking` is set, the frames must be successive ones of a video: each is followed from the one before.

        Args:
            source: (b, 3, H, W) in [0, 1].
            driving: (b, 3, H, W), or (b, 3, t, H, W).

        Raises:
            UserError: shapes that are not these or do not agree.
        """
        return self._predict_motion(source, driving).motion

    def estimate_motions(self, source: Tensor, parts: Iterable[Tensor]) -> Iterator[Motion]:
        """The motion of a long video that comes in parts (b, 3, t, H, W): that of the whole, part by part.

        Raises:
            UserError: as `estimate_motion`.
        """
        before = None
        for part in parts:
            motion = self._predict_motion(source, part, before).motion
            before = part[:, :, -1], motion.flow[:, :, -1]
            yield motion

    def region_heat(self, video: Tensor) -> Tensor:
        """Where each region of stage 1 is in every frame (b, 3, t, H, W): Gaussians of peak 1, (b, K, t, h, w).

        Raises:
            UserError: a dense motion predictor, which knows no regions, or another shape.
        """
        predictor = self.motion_predictor
        if not isinstance(predictor, RegionMotionPredictor):
            raise UserError("this model's motion predictor is dense: it has no regions to show")
        self._check_image(video, "video", ndim=5)
        regions = predictor.region_predictor(rearrange(video.to(self.dtype), "b c t h w -> (b t) c h w"))
        h, w = (side // self.stride for side in video.shape[-2:])
        heat = region_heat(regions, identity_grid(h, w, corners=self.corners, device=video.device))
        return rearrange(heat, "(b t) k h w -> b k t h w", b=len(video))

    def decode(self, features: Features, motion: Motion) -> Decoded:
        """Frames (b, 3, t, H, W) of the source moved by `motion`, all in one batch.

        Raises:
            UserError: a motion of the other coordinate convention, or of another batch size.
        """
        if motion.corners != self.corners:
            raise UserError(
                f"this model's motion has corners={self.corners}; got corners={motion.corners}: conventions cannot be mixed"
            )
        if motion.flow.shape[0] != features.image.shape[0]:
            raise UserError(f"{features.image.shape[0]} source images need as many motions; got {motion.flow.shape[0]}")
        sizes = {size_of(x) for x in (features.image, *features.scales)}
        motions = {size: motion.resize(size) for size in sizes}

        def warped(x: Tensor) -> tuple[Tensor, Tensor]:
            return self._warp_scale(x, motions[size_of(x)])

        latent, occlusion = warped(features.latent)
        x = self.bottleneck(latent * occlusion)
        x = torch.lerp(x, latent, occlusion)
        for up, skip in zip(self.ups, reversed(features.scales[:-1]), strict=True):
            x = torch.lerp(up(x), *warped(skip))
        image, occlusion = warped(features.image)
        inpainted = torch.sigmoid(convolve_to_few(x, self.final)).to(image.dtype)
        prediction = torch.lerp(inpainted, image, occlusion)
        b = motion.flow.shape[0]
        return Decoded(*(rearrange(v, "(b t) c h w -> b c t h w", b=b) for v in (prediction, image, inpainted)))

    def forward(self, source: Tensor, driving: Tensor) -> Reconstruction:
        """Rebuild driving frames (b, 3, H, W) or (b, 3, t, H, W) from the source (b, 3, H, W)."""
        predicted = self._predict_motion(source, driving)
        motion = predicted.motion
        decoded = self.decode(self.encode(source), motion)
        if isinstance(predicted, RegionMotion):
            return Reconstruction(decoded, motion, driving_regions=predicted.driving)
        return Reconstruction(
            decoded,
            motion,
            matched=predicted.matched,
            match_target=predicted.match_target,
            match_flow=predicted.match_flow,
        )

    def _predict_motion(
        self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None
    ) -> DenseMotion | RegionMotion:
        self._check_image(source, "source", ndim=4)
        if driving.ndim == 4:
            driving = driving.unsqueeze(2)
        self._check_image(driving, "driving", ndim=5)
        if driving.shape[0] != source.shape[0] or driving.shape[-2:] != source.shape[-2:]:
            raise UserError(f"source {tuple(source.shape)} and driving {tuple(driving.shape)} differ in batch or image size")
        source, driving = source.to(self.dtype), driving.to(self.dtype)
        if isinstance(self.motion_predictor, RegionMotionPredictor):
            return self.motion_predictor.match(source, driving)
        if isinstance(self.motion_predictor, CoarseDenseMotionPredictor) or before is None:
            return self.motion_predictor(source, driving)
        frame, flow = before
        return self.motion_predictor(source, driving, (frame.to(self.dtype), flow))

    def _warp_scale(self, x: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
        """`x` (b, c, H, W) warped, and the occlusion of its size: (b * t, c, H, W) and (b * t, 1, H, W)."""
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


def size_of(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
