"""Tasks that need only stage 1: transfer the motion of a clip, or a given motion, to images.

Shapes: image (b, 3, H, W) in [0, 1] · video (b, 3, t, H, W) in [0, 1].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, Unpack, get_args

import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import Features, LatentFlowAutoencoder
from lfdm.config.checks import check, check_number
from lfdm.config.video import MIN_FPS, SIDE_MULTIPLE, Fit, OutputSize, PictureFit, Size, SizeInput
from lfdm.errors import UserError
from lfdm.folders.components import check_load_options
from lfdm.folders.run_folder import find_stage1
from lfdm.folders.sources import HubOptions, find_folder
from lfdm.motion.motion import Motion
from lfdm.pipeline.compatibility import check_image, min_side
from lfdm.pipeline.control import MotionControl, estimate_driving_motion
from lfdm.pipeline.decoding import decode_video
from lfdm.pipeline.framing import Framing, check_pictures, native_framing
from lfdm.pipeline.full_size import MAX_MEGAPIXELS, FullSizePicture, check_output_size, decode_full_size
from lfdm.pipeline.inputs import (
    DrivingInput,
    ImageInput,
    MaskInput,
    Picture,
    fit_images,
    picture_size,
    picture_to_8_bits,
    read_images,
)
from lfdm.pipeline.pixel_art import PixelArt, decode_pixel_art
from lfdm.pipeline.result import LatentFlowOutput, OutputType, check_output_type


class MotionTransfer:
    """The methods of `LatentFlowPipeline` that sample nothing."""

    autoencoder: LatentFlowAutoencoder

    @property
    def config(self) -> Any:
        """The settings: `image_size`, `fit` and `fps` at least."""
        raise NotImplementedError

    @property
    def size(self) -> Size:
        """Size of frames, as in training."""
        return Size.parse(self.config["image_size"])

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.autoencoder.device

    @torch.no_grad()
    def animate(
        self,
        image: ImageInput,
        motion: Motion,
        *,
        motion_strength: float = 1.0,
        motion_mask: MaskInput | None = None,
        fit: PictureFit | None = None,
        output_type: OutputType = "pil",
        output_size: OutputSize = "model",
        max_megapixels: float = MAX_MEGAPIXELS,
        keep_alpha: bool = True,
        pixel_art: bool = False,
    ) -> LatentFlowOutput:
        """Apply given motion to images, one to one or one to many; the other arguments are as in a call.

        Raises:
            UserError: not a motion, or one of the other coordinate convention or of another batch size.
        """
        check_output_type(output_type)
        if not isinstance(motion, Motion):
            raise UserError(f"motion must be a Motion, as Motion.load returns; got {type(motion).__name__}")
        pictures = read_images(image, keep_alpha=keep_alpha)
        placed, art = self._place(pictures, motion_mask, pixel_art=pixel_art)
        framing = self.framing(placed, fit)
        control = MotionControl(motion_strength, motion_mask, placed, framing, reach=self.autoencoder.upsampling_reach)
        if len(pictures) > 1 and len(motion.flow) == 1:
            motion = Motion.concatenate([motion] * len(pictures), dim=0)
        full_size = self._full_size(pictures, framing, output_size, max_megapixels, art)
        source = self._encode(placed, framing, art)
        if len(pictures) == 1:
            source = source.repeat(len(motion.flow))
        return self._decode(source, control(motion.to(self.device)), output_type, full_size)

    @torch.no_grad()
    def transfer(
        self,
        image: ImageInput,
        driving: DrivingInput,
        *,
        relative: bool = True,
        motion_strength: float = 1.0,
        motion_mask: MaskInput | None = None,
        fit: PictureFit | None = None,
        output_type: OutputType = "pil",
        output_size: OutputSize = "model",
        max_megapixels: float = MAX_MEGAPIXELS,
        keep_alpha: bool = True,
        pixel_art: bool = False,
        callback_on_decode: Callable[[int], None] | None = None,
    ) -> LatentFlowOutput:
        """Transfer the motion of a driving clip of any length to one image; a streamed clip is read a few frames at a time.

        Args:
            driving: frames (t, H, W, 3) uint8 or (3, t, H, W) in [0, 1], the path of a clip, or an iterable of frames
                (H, W, 3) or (3, H, W) and such chunks.
            relative: measure the motion against the clip's first frame, so that frame 0 is the image; False = against the
                image, for clips that show the same object in the same place.
            callback_on_decode: called with the number of frames decoded so far after every chunk; may raise to stop.
        """
        check_output_type(output_type)
        pictures = read_images(image, keep_alpha=keep_alpha)
        if len(pictures) != 1:
            raise UserError(f"image must be one image; got {len(pictures)}")
        placed, art = self._place(pictures, motion_mask, pixel_art=pixel_art)
        framing = self.framing(placed, fit)
        control = MotionControl(motion_strength, motion_mask, placed, framing, reach=self.autoencoder.upsampling_reach)
        full_size = self._full_size(pictures, framing, output_size, max_megapixels, art)
        source = self._encode(placed, framing, art)
        motion = estimate_driving_motion(self.autoencoder, source.features.image, driving, relative=relative, framing=framing)
        return self._decode(source, control(motion), output_type, full_size, after_chunk=callback_on_decode)

    @property
    def side_multiple(self) -> int:
        """The number that height and width of images must be multiples of."""
        return self.autoencoder.size_multiple

    def framing(self, pictures: Sequence[Picture], fit: PictureFit | None = None) -> Framing:
        """Return the size in which pictures are animated, and how they are fitted to it.

        Args:
            fit: `native` = the pictures' own shape, with about as many pixels as in training; others = the size of training;
                None = as in training.

        Raises:
            UserError: an unknown `fit`, a picture that is too small, or with `native` a shape that the networks cannot take or
                pictures of several shapes.
        """
        allowed = "one of " + ", ".join(map(repr, get_args(PictureFit)))
        check(fit is None or fit in get_args(PictureFit), "fit", fit, allowed)
        sizes = [picture_size(picture) for picture in pictures]
        check_pictures(sizes)
        if fit != "native":
            return Framing(size=self.size, fit=fit or self.config["fit"])
        multiple = math.lcm(SIDE_MULTIPLE, self.side_multiple)
        least = min_side(multiple=multiple, stride=self.autoencoder.stride)
        return native_framing(sizes, training=self.size, fit=self.config["fit"], multiple=multiple, least=least)

    def _place(
        self, pictures: list[Picture], mask: MaskInput | None, *, pixel_art: bool
    ) -> tuple[list[Picture], PixelArt | None]:
        """Return pictures as they are or, for pixel art, on a canvas of the model's shape, and that canvas."""
        if not pixel_art:
            return pictures, None
        art = PixelArt.place([picture_to_8_bits(picture) for picture in pictures], self.size)
        if mask is not None and (art.height, art.width) != self.size:
            got = Size(art.height, art.width)
            raise UserError(f"image must be {self.size}, the model's size, with motion_mask and pixel_art; got {got}")
        return [*art.enlarged()], art

    def _full_size(
        self,
        pictures: Sequence[Picture],
        framing: Framing,
        output_size: OutputSize,
        max_megapixels: float,
        art: PixelArt | None,
    ) -> list[FullSizePicture] | None:
        """Return the pictures themselves where frames have their size, otherwise None."""
        sizes = [picture_size(picture) for picture in pictures]
        check_output_size(output_size, sizes, max_megapixels)
        if output_size == "model":
            return None
        if art is not None:
            raise UserError("output_size must be 'model' with pixel_art, whose frames have the image's size anyway; got 'native'")
        fit = framing.fit_of(sizes[0])
        return [FullSizePicture.prepare(picture, framing.size, fit, self.device) for picture in pictures]

    def _encode(self, pictures: Sequence[Picture], framing: Framing, art: PixelArt | None = None) -> "EncodedImages":
        fit = framing.fit_of(picture_size(pictures[0]))
        images = fit_images(pictures, size=framing.size, fit=fit).to(self.device)
        features = self.autoencoder.encode(images.over_white)
        if images.filled is None:
            return EncodedImages(features, features, art=art)
        return EncodedImages(features, self.autoencoder.encode(images.filled), images.premultiplied, art)

    def _decode(
        self,
        source: "EncodedImages",
        motion: Motion,
        output_type: OutputType,
        full_size: Sequence[FullSizePicture] | None,
        after_chunk: Callable[[int], None] | None = None,
    ) -> LatentFlowOutput:
        if full_size is not None:
            return decode_full_size(self.autoencoder, source.decoded, motion, full_size, output_type, after_chunk=after_chunk)
        if source.art is not None:
            return decode_pixel_art(self.autoencoder, source.decoded, motion, source.art, output_type, after_chunk=after_chunk)
        return decode_video(
            self.autoencoder,
            source.decoded,
            motion,
            output_type,
            premultiplied=source.premultiplied,
            after_chunk=after_chunk,
        )


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images as features, with what else is needed to decode frames from them."""

    features: Features
    """The images from which motion is sampled or estimated, over white where they have alpha."""
    decoded: Features
    """The images from which frames are decoded."""
    premultiplied: Tensor | None = None
    """The images (b, 4, H, W), where they have alpha."""
    art: PixelArt | None = None
    """The images in their own size, for frames of pixel art."""

    def repeat(self, count: int) -> "EncodedImages":
        """Return these images, each `count` times in a row."""
        features, art = self.features.repeat(count), None if self.art is None else self.art.repeat(count)
        if self.premultiplied is None:
            return EncodedImages(features, features, art=art)
        premultiplied = self.premultiplied.repeat_interleave(count, dim=0)
        return EncodedImages(features, self.decoded.repeat(count), premultiplied, art)


class Stage1Pipeline(MotionTransfer):
    """Stage 1 on its own, which transfers motion but does not generate any.

    Args:
        autoencoder: stage 1.
        image_size: (height, width) of frames, or one number for squares.
        fit: how images of other shapes are fitted, as the training data was.
        fps: frames per second of written videos.

    Raises:
        UserError: a setting that is not allowed.
    """

    def __init__(self, autoencoder: LatentFlowAutoencoder, *, image_size: SizeInput, fit: Fit = "pad", fps: float = 8.0) -> None:
        size = Size.parse(image_size, "image_size")
        check_image(size, fit, multiple=autoencoder.size_multiple, stride=autoencoder.stride)
        self.autoencoder = autoencoder
        self._config = {"image_size": size.setting, "fit": fit, "fps": check_number("fps", fps, low=MIN_FPS)}

    @property
    def config(self) -> dict[str, Any]:
        """The settings `image_size`, `fit` and `fps`."""
        return self._config

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        fit: Fit | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load stage 1 from its run folder, one of its checkpoints, or any model that `LatentFlowPipeline.from_pretrained` takes.

        Args:
            dtype: number format of the model; float32 by default.
            fit: replaces the one of the training.
            hub: see `lfdm.folders.sources.HubOptions`.

        Raises:
            UserError: an unknown name, weights that do not match, or an auto-encoder without its run or pipeline folder.
            FileNotFoundError: no such folder or file.
        """
        stage1 = find_stage1(find_folder(name, **hub))
        autoencoder = LatentFlowAutoencoder.from_pretrained(stage1.folder, dtype=check_load_options(dtype, None), device=device)
        return cls(autoencoder, image_size=stage1.image_size, fit=fit or stage1.fit, fps=stage1.fps)
