"""Feature extractors whose weights are files: I3D (two formats), VideoMAE and VGG.

Shapes: video (b, 3, t, H, W) in [0, 1] · frames (b, 3, H, W) in [0, 1] · features (b, dim).
"""

import io
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lfdm.data.frame_indices import uniform_indices
from lfdm.errors import MissingExtraError, UserError
from lfdm.evaluation.networks.features import (
    FrameFeatures,
    VideoFeatures,
    check_video,
    read_weights,
    resize_and_crop,
    to_8_bits,
)
from lfdm.evaluation.networks.i3d import I3D, IMAGE_SIZE, NUM_CLASSES
from lfdm.folders.files import expand_home
from lfdm.folders.model_folder import load_exactly
from lfdm.published.weights import read_tensor_dict
from lfdm.training.losses.perceptual import PerceptualLoss

TORCHSCRIPT_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
"""SHA-256 of StyleGAN-V's `i3d_torchscript.pt` (51,235,320 bytes). StyleGAN-V publishes none; this is the value that a mirror
states (huggingface.co/chunyu-li/LatentSync) and that ten evaluation codes check. The file itself was not available for this
project."""

RGB_IMAGENET_SHA256 = "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538"
"""SHA-256 of pytorch-i3d's `rgb_imagenet.pt` (50,883,138 bytes): same layout and classes as `i3d_pretrained_400.pt`, but other
weights (pretrained on ImageNet), which give other distances."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MIN_I3D_FRAMES = 10
"""Minimum of the usual FVD codes; the network itself accepts one frame fewer."""
MIN_VGG_SIDE = 16
"""Smallest side in pixels that leaves one position in VGG's last block."""


class I3DFeatures:
    """Logits of our I3D with the weights of a plain state dict: `i3d_pretrained_400.pt`, as used by VideoGPT, TATS and others.

    Frames are rounded to 8 bits, as those codes read them, resized (bilinear, not anti-aliased) to 224 pixels on the shorter
    side, cropped to the centre and scaled to [-1, 1]. A state dict does not hold the epsilon of the batch norms: it is 1e-5 in
    the codes around this file, and 1e-3 in pytorch-i3d, whose own `rgb_imagenet.pt` is recognised by its SHA-256.
    """

    dim = NUM_CLASSES
    min_frames = MIN_I3D_FRAMES

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu") -> None:
        path, _, self.sha256 = read_weights(path)
        from_imagenet = self.sha256 == RGB_IMAGENET_SHA256
        self.name = "FVD[i3d-rgb-imagenet]" if from_imagenet else "FVD"
        self.network = I3D(eps=1e-3 if from_imagenet else 1e-5)
        weights = read_tensor_dict(path)
        for name, count in self.network.state_dict().items():
            if name.endswith("num_batches_tracked"):  # missing in older files, and not read in inference
                weights.setdefault(name, torch.zeros_like(count))
        load_exactly(self.network, weights, str(path))
        self.network.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        check_video(video, self)
        return self.network(2 * resize_and_crop(to_8_bits(video.to(self.device)), IMAGE_SIZE) - 1)


class TorchScriptI3DFeatures:
    """StyleGAN-V's `i3d_torchscript.pt`: the same network as a program, which resizes and scales by itself.

    Such a file executes code: it runs only if its SHA-256 is the known one, or with `trust_file`. The figure of any other file
    carries the file's name.
    """

    dim = NUM_CLASSES
    min_frames = MIN_I3D_FRAMES

    def __init__(self, path: str | Path, *, trust_file: bool = False, device: torch.device | str = "cpu") -> None:
        path, content, self.sha256 = read_weights(path)  # the hashed bytes are the ones that run
        is_known = self.sha256 == TORCHSCRIPT_SHA256
        if not (trust_file or is_known):
            raise UserError(
                f"{path} is a program and was not run: its SHA-256 is {self.sha256}, not {TORCHSCRIPT_SHA256}. "
                f"If you trust the file, set trust_file"
            )
        self.name = "FVD" if is_known else f"FVD[i3d-torchscript:{path.name}]"
        self.device = torch.device(device)
        try:
            self.network = torch.jit.load(io.BytesIO(content), map_location=self.device).eval()
        except RuntimeError as error:
            raise UserError(f"{path} is not a TorchScript file ({str(error).splitlines()[0]})") from None

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        check_video(video, self)
        features = self.network(255 * to_8_bits(video.to(self.device)), rescale=True, resize=True, return_features=True)
        if features.shape != (len(video), self.dim):
            raise UserError(f"{self.name}: the file must return {self.dim} features per video; got {tuple(features.shape)}")
        return features.float()


class VideoMAEFeatures:
    """Mean over all patches of the last hidden states of a VideoMAE (arXiv 2203.12602) by transformers.

    If the model is a classifier that normalises that mean (`fc_norm`), the normalised mean. Such features favour single frames
    less than I3D's do (Ge et al., arXiv 2404.12391). A longer clip is read at `num_frames` evenly spaced frames.

    Args:
        source: folder, or name on the Hugging Face Hub (read from its cache, or downloaded); only safetensors.
    """

    def __init__(self, source: str | Path, *, device: torch.device | str = "cpu") -> None:
        folder = expand_home(source)
        local = folder.is_dir()
        weights, self.network = _load_videomae(str(folder) if local else str(source))
        _, _, self.sha256 = read_weights(weights)
        self.name = f"FVD[videomae:{folder.resolve().name if local else source}]"
        config: Any = self.network.config
        self.dim: int = config.hidden_size
        self.min_frames: int = config.num_frames
        self.image_size: int = config.image_size
        self.network.to(device)
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        check_video(video, self)
        chosen = uniform_indices(video.shape[2], self.min_frames)
        pixels = resize_and_crop(to_8_bits(video[:, :, chosen].to(self.device)), self.image_size)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = rearrange((pixels - mean) / std, "b c t h w -> b t c h w")
        encoder = getattr(self.network, "videomae", self.network)
        features = encoder(pixels).last_hidden_state.mean(dim=1)
        norm = getattr(self.network, "fc_norm", None)
        return features if norm is None else norm(features)


class VGGFrameFeatures:
    """Last compared layer of a VGG network (conv4_3 of VGG-16, conv5_1 of VGG-19, after the ReLU), averaged over the frame.

    Frames keep their size, as in the perceptual loss: figures at different sizes are not comparable.

    Args:
        path: one of the two files that `PerceptualLoss` accepts.
    """

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu") -> None:
        path, _, self.sha256 = read_weights(path)
        self.network = PerceptualLoss(path, num_scales=1).to(device).eval()
        self.name = f"FID[{self.network.network.name}]"
        self.device = torch.device(device)
        self.dim = self(torch.zeros(1, 3, 32, 32)).shape[1]

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape[-2:]) < MIN_VGG_SIDE:
            raise UserError(f"frames must be (b, 3, H, W) in [0, 1], H and W at least {MIN_VGG_SIDE}; got {tuple(frames.shape)}")
        return self.network.features(to_8_bits(frames.to(self.device)))[-1].mean(dim=(2, 3))


def load_extractor(spec: str, *, trust_file: bool = False, device: torch.device | str = "cpu") -> VideoFeatures:
    """Load the video extractor `i3d:PATH`, `i3d-torchscript:PATH` or `videomae:NAME_OR_DIR`.

    Args:
        trust_file: run a TorchScript file whatever its SHA-256. Such a file is a program.

    Raises:
        UserError: an unknown `spec`, a file of another network, or a program that is not trusted.
        FileNotFoundError: no such file.
        MissingExtraError: `videomae` without transformers.
    """
    kind, _, source = spec.partition(":")
    if source and kind == "i3d":
        return I3DFeatures(source, device=device)
    if source and kind == "i3d-torchscript":
        return TorchScriptI3DFeatures(source, trust_file=trust_file, device=device)
    if source and kind == "videomae":
        return VideoMAEFeatures(source, device=device)
    raise UserError(f"extractors must be classifier, i3d:PATH, i3d-torchscript:PATH or videomae:NAME_OR_DIR; got {spec!r}")


def load_frame_extractor(spec: str, *, device: torch.device | str = "cpu") -> FrameFeatures:
    """Load the frame extractor `vgg:PATH`, the file of a VGG-16 or VGG-19.

    Inception-v3, whose distance is plain FID, is not supported: torchmetrics' needs torch-fidelity, and that needs torchvision.

    Raises:
        UserError: an unknown `spec`, or a file of another network.
        FileNotFoundError: no such file.
    """
    kind, _, source = spec.partition(":")
    if kind != "vgg" or not source:
        raise UserError(f"frame_extractors must be frames or vgg:PATH; got {spec!r}")
    return VGGFrameFeatures(source, device=device)


def _load_videomae(source: str) -> tuple[Path, Any]:
    """Return the file of its weights and the model, float32, in evaluation mode; runs no code from the model's repository."""
    try:
        import transformers
        from transformers.utils.hub import cached_file
    except ImportError as error:
        raise MissingExtraError("videomae features need transformers: pip install 'lfdm[text]'") from error
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type != "videomae":
            raise UserError(f"it is a {config.model_type}")
        classifies = "VideoMAEForVideoClassification" in (config.architectures or [])
        kind: Any = transformers.VideoMAEForVideoClassification if classifies else transformers.VideoMAEModel
        model, report = kind.from_pretrained(source, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
        weights = cached_file(source, "model.safetensors")  # in the cache by now
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # transformers raises any of these for a wrong folder
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise UserError(
            f"no VideoMAE could be loaded from {source!r}; give its folder or its name on the Hub ({reason})"
        ) from error
    if weights is None or report["missing_keys"]:
        raise UserError(f"the VideoMAE {source!r} is incomplete: missing {sorted(report['missing_keys'])}")
    return Path(weights), model.eval().requires_grad_(False)
