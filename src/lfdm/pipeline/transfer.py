"""What needs only stage 1: transfer the motion of a clip, or a given motion, to images.

Shapes: image (b, 3, S, S) in [0, 1] · video (b, 3, t, S, S) in [0, 1].
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.checks import check_number
from lfdm.config.video import MIN_FPS, Fit
from lfdm.errors import UserError
from lfdm.folders.model_folder import check_load_options
from lfdm.folders.run_folder import find_stage1
from lfdm.folders.sources import HubOptions, find_folder
from lfdm.motion.motion import Motion
from lfdm.pipeline.compatibility import check_image
from lfdm.pipeline.control import MotionControl, estimate_driving_motion
from lfdm.pipeline.decoding import decode_video
from lfdm.pipeline.inputs import DrivingInput, ImageInput, MaskInput, Picture, fit_images, read_images
from lfdm.pipeline.result import LatentFlowOutput, OutputType, check_output_type


class MotionTransfer:
    """The methods of `LatentFlowPipeline` that sample nothing."""

    autoencoder: LatentFlowAutoencoder

    @property
    def config(self) -> Any:
        """The settings: `image_size`, `fit` and `fps` at least."""
        raise NotImplementedError

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
        output_type: OutputType = "pil",
    ) -> LatentFlowOutput:
        """Apply given motion to images, one to one or one to many; the other arguments are as in a call.

        Raises:
            UserError: not a motion, or one of the other coordinate convention or of another batch size.
        """
        check_output_type(output_type)
        if not isinstance(motion, Motion):
            raise UserError(f"motion must be a Motion, as Motion.load returns; got {type(motion).__name__}")
        pictures = read_images(image)
        control = self._control(motion_strength, motion_mask, pictures)
        images = self._fit_images(pictures)
        if len(images) == 1:
            images = images.expand(len(motion.flow), -1, -1, -1)
        elif len(motion.flow) == 1:
            motion = Motion.concatenate([motion] * len(images), dim=0)
        features = self.autoencoder.encode(images)
        return decode_video(self.autoencoder, features, control(motion.to(images.device)), output_type)

    @torch.no_grad()
    def transfer(
        self,
        image: ImageInput,
        driving: DrivingInput,
        *,
        relative: bool = True,
        motion_strength: float = 1.0,
        motion_mask: MaskInput | None = None,
        output_type: OutputType = "pil",
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
        pictures = read_images(image)
        if len(pictures) != 1:
            raise UserError(f"image must be one image; got {len(pictures)}")
        control = self._control(motion_strength, motion_mask, pictures)
        images = self._fit_images(pictures)
        motion = estimate_driving_motion(self.autoencoder, images, driving, relative=relative, fit=self.config["fit"])
        features = self.autoencoder.encode(images)
        return decode_video(self.autoencoder, features, control(motion), output_type, after_chunk=callback_on_decode)

    def _control(self, strength: float, mask: MaskInput | None, pictures: list[Picture]) -> MotionControl:
        return MotionControl(strength, mask, pictures, size=self.config["image_size"], fit=self.config["fit"])

    def _fit_images(self, pictures: list[Picture]) -> Tensor:
        return fit_images(pictures, size=self.config["image_size"], fit=self.config["fit"]).to(self.device)


class Stage1Pipeline(MotionTransfer):
    """Stage 1 on its own, which transfers motion but does not generate any.

    Args:
        autoencoder: stage 1.
        image_size: frames are image_size x image_size.
        fit: how images of other shapes are fitted, as the training data was.
        fps: frames per second of written videos.

    Raises:
        UserError: a setting that is not allowed.
    """

    def __init__(self, autoencoder: LatentFlowAutoencoder, *, image_size: int, fit: Fit = "pad", fps: float = 8.0) -> None:
        check_image(image_size, fit, multiple=autoencoder.size_multiple)
        self.autoencoder = autoencoder
        self._config = {"image_size": image_size, "fit": fit, "fps": check_number("fps", fps, low=MIN_FPS)}

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
