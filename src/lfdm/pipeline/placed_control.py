"""A `Control` in one call: what it adds to the network's inputs, and what it does to the sampled motion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.autoencoder.autoencoder import Features
from lfdm.condition.encoder import ConditionInput
from lfdm.config.checks import check
from lfdm.config.control import Control
from lfdm.config.video import Size
from lfdm.diffusion.guidance import Guidance
from lfdm.diffusion.sampling import KnownMotion
from lfdm.errors import UserError
from lfdm.motion.codec import SampleSpace
from lfdm.motion.motion import Motion
from lfdm.motion.part_strength import find_part, scale_at_source
from lfdm.pipeline.conditions import over_time
from lfdm.pipeline.control_report import ControlReport
from lfdm.pipeline.framing import Framing
from lfdm.pipeline.full_size import frame_box
from lfdm.pipeline.inputs import Picture, fit_images, picture_size, prepare_mask, read_images
from lfdm.pipeline.track_control import TrackControl

if TYPE_CHECKING:
    from lfdm.pipeline.pipeline import LatentFlowPipeline


@dataclass(frozen=True, eq=False)
class PlacedControl:
    """A control over the frames of a call; without one nothing changes."""

    control: Control = field(default_factory=Control)
    num_frames: int = 1
    last: float = 1.0
    """Time of the last frame."""
    tracks: TrackControl | None = None
    end_image: Tensor | None = None
    """(1, 3, H, W)."""
    parts: tuple[tuple[float, Tensor], ...] = ()
    """Strength of each part, and a point (2,) of it in the frame or its mask (1, 1, H, W)."""

    @classmethod
    def place(
        cls,
        pipe: "LatentFlowPipeline",
        control: Control | None,
        pictures: Sequence[Picture],
        framing: Framing,
        num_frames: int,
        *,
        pixel_art: bool,
    ) -> Self:
        """Place a control over videos of pictures.

        Raises:
            UserError: a model that cannot follow it, pictures of several sizes, a position or time outside, a contradiction, or
                an end image of another shape.
            FileNotFoundError: no such end image.
        """
        if control is None:
            return cls()
        if not isinstance(control, Control):
            raise UserError(f"control must be a Control, as lfdm.config.control defines it; got {type(control).__name__}")
        check(not pixel_art, "pixel_art", True, "False with control")
        sizes = {picture_size(picture) for picture in pictures}
        if len(sizes) > 1:
            raise UserError(f"image must have one size with control; got {', '.join(map(str, sorted(sizes)))}")
        size, fps = sizes.pop(), pipe.config["fps"]
        control.for_picture(size)
        last = control.last_time(num_frames, fps)
        end_image = None if control.end_image is None else _read_end_image(control.end_image, size, framing)
        if end_image is not None and not pipe.motion_codec.has_frame_axis:
            raise UserError(
                f"end_image must be None with a {type(pipe.motion_codec).__name__}, which does not sample every frame"
            )
        tracks = None
        if control.follows_tracks:
            if not pipe.unet.track_inputs:
                raise UserError(
                    "drags and pins (--drag, --pin) need a model that follows tracks, trained by `lfdm "
                    "train diffusion PRESET --unet.track-inputs`; this one has no such input, but it can take part strengths, "
                    "labels over time and an end image"
                )
            tracks = TrackControl.place(control, size, framing, num_frames=num_frames, fps=fps)
        return cls(control, num_frames, last, tracks, end_image, _place_parts(control, size, framing))

    def over_time(self, guidance: Guidance, embed: Callable[[ConditionInput], Tensor], space: SampleSpace) -> Guidance:
        """Return the guidance, with labels over time if there are any; UserError if samples of `space` cannot have them."""
        if not self.control.labels:
            return guidance
        guidance = over_time(guidance, embed, self.control.labels, self.num_frames, self.last)
        assert guidance.weights is not None
        return replace(guidance, weights=space.over_time(guidance.weights))

    def maps(self, latent: Tensor) -> Tensor | None:
        """Return the maps of the tracks for image latents (b, C, h, w): (b, TRACK_CHANNELS, t, h, w), or None."""
        if self.tracks is None:
            return None
        maps = self.tracks.maps((latent.shape[-2], latent.shape[-1]))
        return maps.to(latent.device).expand(len(latent), -1, -1, -1, -1)

    def known(self, pipe: "LatentFlowPipeline", source: Features, latent: Tensor) -> KnownMotion:
        """Return what the control fixes in the motion: the pose of the end image, and the paths of the tracks."""
        observation = None
        if self.tracks is not None and self.control.correct:
            observation = self.tracks.observation(pipe.motion_codec, self.num_frames, device=latent.device)
        return KnownMotion(last_frame=self._last_frame(pipe, source, latent), observation=observation)

    def _last_frame(self, pipe: "LatentFlowPipeline", source: Features, latent: Tensor) -> Tensor | None:
        if self.end_image is None:
            return None
        image = source.image
        motion = pipe.autoencoder.estimate_motion(image, self.end_image.to(image).expand(len(image), -1, -1, -1))
        return pipe.motion_codec.encode(motion.resize((latent.shape[-2], latent.shape[-1]))).float()

    def apply(self, motion: Motion) -> tuple[Motion, ControlReport | None]:
        """Return a sampled motion after the last correction, with the strengths of its parts, and how far tracks were missed."""
        corrected, report = (motion, None) if self.tracks is None else self.tracks.correct_motion(motion)
        amount = torch.ones(len(motion.flow), 1, *motion.size, device=motion.flow.device)
        for value, part in self.parts:
            mask = find_part(corrected, part) if part.ndim == 1 else F.interpolate(part.to(amount), motion.size, mode="area")
            amount = amount * (1 + (value - 1) * mask)
        return (scale_at_source(corrected, amount) if self.parts else corrected), report


def _place_parts(control: Control, size: Size, framing: Framing) -> tuple[tuple[float, Tensor], ...]:
    """Return the parts of a control in the model's frame; UserError for a mask that is none or has another size."""
    fit, scale = framing.fit_of(size), control.size or size
    box, placed = frame_box(size, framing.size, fit), []
    for part in control.strengths:
        if part.at is not None:
            x, y = part.at[0] * size.width / scale[1], part.at[1] * size.height / scale[0]
            place = box.to_frame(torch.tensor([x, y]))
        else:
            assert part.mask is not None
            place = prepare_mask(part.mask, size=framing.size, fit=fit, image_sizes={size})
        placed.append((part.value, place))
    return tuple(placed)


def _read_end_image(image: object, size: Size, framing: Framing) -> Tensor:
    """Read and fit an end image: (1, 3, H, W); UserError for another shape than the picture's."""
    pictures = read_images(image)  # pyright: ignore[reportArgumentType] - checks the kind itself
    own = picture_size(pictures[0])
    if not own.has_shape_of(size):
        raise UserError(f"end_image must have the shape of the image, {size}; got {own} (height x width)")
    return fit_images(pictures[:1], size=framing.size, fit=framing.fit_of(own)).over_white
