"""What videos and frames are turned into before distributions are compared: one interface, several networks, each named in full.

A Frechet distance is a property of its feature extractor. So every extractor carries the name of the figure that it gives: "FVD"
is that of the I3D network trained on Kinetics-400 alone; any other says which it is, as in `FVD[puppets-classifier]`.
docs/evaluation.md states all that the figures depend on.

Shapes: video (b, 3, t, H, W) in [0, 1] · frames (b, 3, H, W) in [0, 1] · features (b, dim).
"""

import hashlib
import io
import math
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save
from torch import Tensor

from lfdm.data.frame_indices import uniform_indices
from lfdm.errors import MissingExtraError, UserError
from lfdm.evaluation.networks.classifier import ActionClassifier
from lfdm.evaluation.networks.i3d import I3D, IMAGE_SIZE, NUM_CLASSES
from lfdm.folders.model_folder import load_exactly
from lfdm.published.weights import read_checkpoint
from lfdm.training.losses.perceptual import PerceptualLoss

TORCHSCRIPT_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
"""Of StyleGAN-V's `i3d_torchscript.pt` (51,235,320 bytes). StyleGAN-V itself states none: this is what a mirror states
(huggingface.co/chunyu-li/LatentSync) and ten evaluation codes check their download against. The file was not at hand here."""

RGB_IMAGENET_SHA256 = "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538"
"""Of pytorch-i3d's `rgb_imagenet.pt` (50,883,138 bytes): layout and classes of `i3d_pretrained_400.pt`, but other weights (they
were learned on ImageNet first), which give other distances."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MIN_I3D_FRAMES = 10
"""What FVD codes ask for; the network itself takes one fewer."""


class VideoFeatures(Protocol):
    """An extractor of features of whole videos."""

    name: str
    """The Frechet figure as it is printed: "FVD", `FVD[puppets-classifier]`, `FVD[videomae:NAME]`."""
    dim: int
    """Numbers per video."""
    sha256: str | None
    """Of the weights' file."""
    min_frames: int
    """Shortest video it takes."""

    def __call__(self, video: Tensor) -> Tensor:
        """Features (b, dim) float32, on the extractor's device, of a video (b, 3, t, H, W) in [0, 1].

        Raises:
            UserError: another shape, or fewer than `min_frames` frames.
        """
        ...


class FrameFeatures(Protocol):
    """An extractor of features of single frames."""

    name: str
    """The Frechet figure as it is printed: `FID[vgg16]`. Never plain FID, which is that of Inception-v3."""
    dim: int
    """Numbers per frame."""
    sha256: str | None
    """Of the weights' file."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Features (b, dim) float32, on the extractor's device, of frames (b, 3, H, W) in [0, 1].

        Raises:
            UserError: another shape.
        """
        ...


def kernel_name(extractor: VideoFeatures | FrameFeatures) -> str:
    """What the kernel distance over these features is called: KVD for FVD, `KVD[vgg16]` for `FVD[vgg16]`, KID for FID."""
    return "K" + extractor.name.removeprefix("F")


class ClassifierFeatures:
    """The classifier trained on the data set itself, before its last layer.

    It sees what moves and how, hardly who is shown or how sharply. A longer clip is read at `num_frames` uniform frames.
    """

    def __init__(self, classifier: ActionClassifier, data_name: str) -> None:
        self.classifier = classifier.eval()
        self.name = f"FVD[{data_name}-classifier]"
        self.dim = classifier.num_features
        self.min_frames = classifier.num_frames
        weights = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
        self.sha256: str | None = hashlib.sha256(save(weights)).hexdigest()  # as its folder's file

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        check_video(video, self)
        chosen = uniform_indices(video.shape[2], self.min_frames)
        return self.classifier.features(video[:, :, chosen].to(self.classifier.device).float())


class I3DFeatures:
    """Logits of our I3D with the weights of a plain state dict: `i3d_pretrained_400.pt`, as VideoGPT, TATS and others use it.

    Frames are rounded to 8 bits, as those codes read them, resized (bilinear, not anti-aliased) to 224 pixels on the shorter
    side, cropped to the centre and scaled to [-1, 1]. A state dict does not hold the epsilon of the batch norms: it is 1e-5 in
    the codes around this file, 1e-3 in pytorch-i3d, whose own `rgb_imagenet.pt` is known by its SHA-256.
    """

    dim = NUM_CLASSES
    min_frames = _MIN_I3D_FRAMES

    def __init__(self, path: str | Path, *, sha256: str | None = None, device: torch.device | str = "cpu") -> None:
        path = _find_file(path)
        self.sha256: str | None = _check_sha256(path, path.read_bytes(), sha256)
        other = self.sha256 == RGB_IMAGENET_SHA256
        self.name = "FVD[i3d-rgb-imagenet]" if other else "FVD"
        self.network = I3D(eps=1e-3 if other else 1e-5)
        weights = read_checkpoint(path)
        for name, count in self.network.state_dict().items():
            if name.endswith("num_batches_tracked"):  # older files have none, and inference does not read it
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

    Such a file executes code: it is run only at its known SHA-256, at one that the caller states, or with `trust_file`. The
    figure of any other than the known file bears the file's name.
    """

    dim = NUM_CLASSES
    min_frames = _MIN_I3D_FRAMES

    def __init__(
        self, path: str | Path, *, sha256: str | None = None, trust_file: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        path = _find_file(path)
        content = path.read_bytes()  # hashed and run are the same bytes
        found = hashlib.sha256(content).hexdigest()
        if not trust_file and found != (wanted := sha256 or TORCHSCRIPT_SHA256):
            raise UserError(
                f"{path} is a program and is not run: its SHA-256 is {found}, not {wanted}. "
                f"If you trust the file, set trust_file (in Python, or state its sha256)"
            )
        self.sha256: str | None = found
        self.name = "FVD" if found == TORCHSCRIPT_SHA256 else f"FVD[i3d-torchscript:{path.name}]"
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
            raise UserError(f"{self.name}: the file must give {self.dim} features a video; got {tuple(features.shape)}")
        return features.float()


class VideoMAEFeatures:
    """A VideoMAE (arXiv 2203.12602) by transformers: the mean of its last hidden states over all patches.

    Where the model is a classifier that normalises that mean (`fc_norm`), the normalised one. Such features favour single frames
    less than I3D's do (Ge et al., arXiv 2404.12391). A longer clip is read at `num_frames` uniform frames.

    Args:
        source: folder, or a name of the Hugging Face Hub (read from its cache, or downloaded); safetensors alone.
    """

    def __init__(self, source: str | Path, *, sha256: str | None = None, device: torch.device | str = "cpu") -> None:
        folder = Path(source).expanduser()
        local = folder.is_dir()
        weights, self.network = _load_videomae(str(folder) if local else str(source))
        self.sha256: str | None = _check_sha256(weights, weights.read_bytes(), sha256)
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
    """The last compared layer of a VGG network (conv4_3 of VGG-16, conv5_1 of VGG-19, after the ReLU), averaged over the frame.

    Frames keep their size, as in the perceptual loss: figures at different sizes are not comparable.

    Args:
        path: either file that `training.perceptual.PerceptualLoss` takes.
    """

    def __init__(self, path: str | Path, *, sha256: str | None = None, device: torch.device | str = "cpu") -> None:
        path = _find_file(path)
        self.sha256: str | None = _check_sha256(path, path.read_bytes(), sha256)
        self.network = PerceptualLoss(path, num_scales=1).to(device).eval()
        self.name = f"FID[{self.network.network.name}]"
        self.device = torch.device(device)
        self.dim = self(torch.zeros(1, 3, 32, 32)).shape[1]

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        if frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape[-2:]) < 16:
            raise UserError(f"frames must be (b, 3, H, W) in [0, 1] of at least 16x16 pixels; got {tuple(frames.shape)}")
        return self.network.features(to_8_bits(frames.to(self.device)))[-1].mean(dim=(2, 3))


def load_extractor(
    spec: str,
    *,
    classifier: ActionClassifier | None = None,
    data_name: str | None = None,
    sha256: str | None = None,
    trust_file: bool = False,
    device: torch.device | str = "cpu",
) -> VideoFeatures:
    """The extractor that `spec` names.

    Args:
        spec: `classifier`, `i3d:PATH`, `i3d-torchscript:PATH` or `videomae:NAME_OR_DIR`.
        classifier: the network trained on the data set itself, for `classifier`; it stays on its device.
        data_name: the data set's name, which `classifier` is printed with.
        sha256: what the file must have; for `i3d-torchscript` in place of the published one.
        trust_file: run a TorchScript file whatever its SHA-256: such a file is a program.

    Raises:
        UserError: an unknown spec, an argument without effect on it, a file of another network, or of another SHA-256.
        FileNotFoundError: no such file.
        MissingExtraError: `videomae` without transformers.
    """
    kind, _, source = spec.partition(":")
    if (spec == "classifier") != (classifier is not None and data_name is not None):
        raise UserError(
            f"extractor 'classifier' goes with a classifier and a data_name, others with neither; "
            f"got {spec!r}, {'a' if classifier is not None else 'no'} classifier and data_name {data_name!r}"
        )
    if trust_file and (kind != "i3d-torchscript" or sha256 is not None):
        raise UserError(
            f"trust_file is for i3d-torchscript without a stated SHA-256: no other file is executed; got {spec!r} and {sha256}"
        )
    if classifier is not None and data_name is not None:
        if sha256 is not None:
            raise UserError(f"extractor 'classifier' is trained here and has no published SHA-256; got {sha256!r}")
        return ClassifierFeatures(classifier, data_name)
    if source and kind == "i3d":
        return I3DFeatures(source, sha256=sha256, device=device)
    if source and kind == "i3d-torchscript":
        return TorchScriptI3DFeatures(source, sha256=sha256, trust_file=trust_file, device=device)
    if source and kind == "videomae":
        return VideoMAEFeatures(source, sha256=sha256, device=device)
    raise UserError(f"extractor must be classifier, i3d:PATH, i3d-torchscript:PATH or videomae:NAME_OR_DIR; got {spec!r}")


def load_frame_extractor(spec: str, *, sha256: str | None = None, device: torch.device | str = "cpu") -> FrameFeatures:
    """The extractor of frames that `spec` names: `vgg:PATH`, of the file of a VGG-16 or VGG-19.

    Inception-v3, whose distance is plain FID, is not among them: torchmetrics' needs torch-fidelity, and that needs torchvision.

    Raises:
        UserError: an unknown spec, a file that does not hold a known network, or one of another SHA-256.
        FileNotFoundError: no such file.
    """
    kind, _, source = spec.partition(":")
    if kind != "vgg" or not source:
        raise UserError(f"extractor of frames must be vgg:PATH; got {spec!r}")
    return VGGFrameFeatures(source, sha256=sha256, device=device)


def check_video(video: Tensor, extractor: VideoFeatures) -> None:
    """Raise UserError where `extractor` does not take `video`."""
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] < extractor.min_frames:
        raise UserError(
            f"{extractor.name}: video must be (b, 3, t, H, W) in [0, 1] of at least {extractor.min_frames} frames; "
            f"got {tuple(video.shape)}"
        )


def to_8_bits(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as a file of 8 bits gives them back, so that generated frames are treated as recorded ones."""
    return (255 * pixels.float().clamp(0, 1)).round() / 255


def resize_and_crop(video: Tensor, size: int) -> Tensor:
    """The shorter side bilinearly to `size`, the longer in proportion (rounded up), then the centre: (b, 3, t, size, size)."""
    b, height, width = video.shape[0], *video.shape[-2:]
    scale = size / min(height, width)
    shape = [size if n == min(height, width) else math.ceil(n * scale) for n in (height, width)]
    frames = F.interpolate(rearrange(video, "b c t h w -> (b t) c h w"), shape, mode="bilinear", align_corners=False)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return rearrange(frames[..., top : top + size, left : left + size], "(b t) c h w -> b c t h w", b=b)


def _find_file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}")
    return path


def _check_sha256(path: Path, content: bytes, wanted: str | None) -> str:
    found = hashlib.sha256(content).hexdigest()
    if wanted is not None and found != wanted:
        raise UserError(f"{path} has another SHA-256 than stated: {found}, not {wanted}")
    return found


def _load_videomae(source: str) -> tuple[Path, Any]:
    """The file of its weights and the model, float32, in evaluation mode; no code of the model's own is run."""
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
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise UserError(f"no VideoMAE can be had from {source!r}; give its folder or its name on the Hub ({reason})") from error
    if weights is None or report["missing_keys"]:
        raise UserError(f"the VideoMAE {source!r} is not whole: missing {sorted(report['missing_keys'])}")
    return Path(weights), model.eval().requires_grad_(False)
