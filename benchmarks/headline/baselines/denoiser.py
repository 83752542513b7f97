"""`ClipDenoiser`: the video U-Net (Video Diffusion Models, arXiv 2204.03458) of the PyPI package `video-diffusion-pytorch`.

Shapes: sample (b, c, t, h, w), noisy pixels or frame latents · first (b, c, h, w), the first frame in the same form.
"""

import copy
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.diffusion import PredictionType
from lfdm.config.registration import register_to_config
from lfdm.diffusion.process import prediction_from_clean, signal_and_noise_scale
from lfdm.errors import UserError
from lfdm.folders.components import Model

PACKAGE = "video_diffusion_pytorch"
LEAST_NOISE = 0.05
"""Smallest sigma by which sample - x0 is divided; below it rounding errors dominate."""
_INSTALL = "pip install --no-deps -r benchmarks/requirements.txt"
_TORCHVISION = ("torchvision", "torchvision.transforms", "torchvision.utils")


def load_unet3d() -> type[nn.Module]:
    """Import `Unet3D` of the package.

    Its file imports two names of torchvision for a data loader that is not used here; both are stubs during the import only,
    since torchvision's wheel does not import next to a CPU build of torch.

    Raises:
        ImportError: the package is not installed; the message has the pip command.
    """
    try:
        with _without_torchvision():
            return importlib.import_module(f"{PACKAGE}.{PACKAGE}").Unet3D
    except ImportError as error:
        raise ImportError(f"the VDM and LDM baselines need {PACKAGE.replace('_', '-')} ({error}): {_INSTALL}") from error


@contextmanager
def _without_torchvision() -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in _TORCHVISION}
    package, transforms, utils = (ModuleType(name) for name in _TORCHVISION)
    vars(transforms)["ToTensor"] = object  # used once, as a default argument
    vars(package).update(transforms=transforms, utils=utils)
    sys.modules.update(zip(_TORCHVISION, (package, transforms, utils), strict=True))
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class ClipDenoiser(Model):
    """Denoise a clip, given its first frame and its label.

    sample (b, c, t, h, w), first (b, c, h, w) -> prediction (b, c, t, h, w).

    The first frame joins every frame of the clip as further channels. The label embedding (fixed and
    orthogonal, as in our model) replaces the package's text embedding.

    Args:
        patch_size: side of the patches folded into channels; 1 is the published form, 4 makes a step about ten times cheaper.
        predicts_clean: the network outputs x0, which is converted to the prediction (JiT, arXiv 2511.13720). With folded
        patches a
            narrow network cannot pass on noise, which fills every channel, whereas images fill few.
        condition_dim: size of a label embedding.
    """

    table: Tensor

    @register_to_config
    def __init__(
        self,
        *,
        labels: Sequence[str],
        sample_channels: int,
        patch_size: int = 1,
        predicts_clean: bool = False,
        prediction_type: PredictionType = "velocity",
        dim: int = 24,
        channel_multipliers: Sequence[int] = (1, 2, 4, 8),
        num_heads: int = 4,
        head_dim: int = 16,
        condition_dim: int = 64,
    ) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.patch_size = patch_size
        self.predicts_clean = predicts_clean
        self.prediction_type: PredictionType = prediction_type
        self.size_multiple = patch_size * 2 ** (len(channel_multipliers) - 1)
        channels = sample_channels * patch_size**2
        self.network: Any = load_unet3d()(
            dim=dim,
            cond_dim=condition_dim,
            channels=2 * channels,
            out_dim=channels,
            dim_mults=tuple(channel_multipliers),
            attn_heads=num_heads,
            attn_dim_head=head_dim,
        )
        for layer in self.network.modules():  # one shared table of fixed frequencies, which a safetensors file cannot hold
            if hasattr(layer, "rotary_emb"):
                layer.rotary_emb = copy.deepcopy(layer.rotary_emb)
        self.register_buffer("table", ConditionEncoder.from_labels(self.labels, condition_dim).table.clone())

    def rows(self, labels: Sequence[str | None]) -> Tensor:
        """Return the table rows (b,) of labels; -1 = the null condition. UserError for an unknown label."""
        unknown = sorted({label for label in labels if label is not None} - set(self.labels))
        if unknown:
            raise UserError(f"unknown labels {unknown}; known: {', '.join(self.labels)}")
        return torch.tensor([-1 if label is None else self.labels.index(label) for label in labels])

    def forward(self, sample: Tensor, timesteps: Tensor, rows: Tensor, first: Tensor) -> Tensor:
        """Return the prediction (b, c, t, h, w) for timesteps (b,) and rows (b,) of the label table; -1 = the null condition.

        Raises:
            UserError: height or width does not divide by `size_multiple`.
        """
        if any(size % self.size_multiple for size in sample.shape[-2:]):
            raise UserError(f"height and width must divide by {self.size_multiple}; got {tuple(sample.shape[-2:])}")
        p = self.patch_size
        frames = repeat(first, "b c h w -> b c t h w", t=sample.shape[2])
        folded = [rearrange(part, "b c t (h p) (w q) -> b (c p q) t h w", p=p, q=p) for part in (sample, frames)]
        embeddings = torch.cat((self.network.null_cond_emb, self.table))  # the package itself would drop conditions at random
        output = self.network(torch.cat(folded, dim=1), timesteps, cond=embeddings[rows + 1])
        output = rearrange(output, "b (c p q) t h w -> b c t (h p) (w q)", p=p, q=p)
        return self._to_prediction(output.float(), sample, timesteps) if self.predicts_clean else output

    def _to_prediction(self, clean: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """Convert x0 to the prediction."""
        alpha, sigma = (scale.view(-1, 1, 1, 1, 1) for scale in signal_and_noise_scale(timesteps, self.prediction_type))
        return prediction_from_clean(clean, sample, alpha, sigma.clamp(min=LEAST_NOISE), self.prediction_type)
