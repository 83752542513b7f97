"""`DenoiserNetwork`: the interface of the networks that stage 2 trains, and their inputs other than the noisy sample.

Shapes: sample (b, *codec.sample_shape(t, h, w)) · latent (b, C, h, w) · condition (k b, D), k conditions of every sample.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lfdm.errors import UserError
from lfdm.folders.components import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoiserContext:
    """Inputs of a network other than the noisy sample and the timestep; they stay the same at every step of sampling."""

    condition: Tensor
    """(b, D)."""
    latent: Tensor
    """(b, C, h, w), of the source image."""
    frames: Tensor | None = None
    """(t,) int64: positions in the clip of the sample's frames; None if the sample has no frame axis."""
    attention_frames: int | None = None
    """Number of frames around it that each frame attends to; None = all."""
    tracks: Tensor | None = None
    """(b, TRACK_CHANNELS, t, h, w), for networks with `track_inputs`: maps of tracks of the sample's frames; None = free."""


class DenoiserNetwork(Model, ABC):
    """Predicts the diffusion target of a noisy sample.

    A pipeline can load every subclass that is imported. Its configuration has at least `sample_channels`, `latent_channels`
    and `condition_dim`.
    """

    blocks: tuple[type[nn.Module], ...] = ()
    """Types of modules, called as such, that gather their weights one after the other where processes hold shares of them."""
    size_multiple: int = 1
    """Height and width of the latent must be multiples of this."""
    flow_map: bool = False
    """`forward` takes `until`, a timestep as `timestep` and not above it, and predicts the mean over the time between them."""
    max_guidance: float | None = None
    """`forward` takes `guidance`, scales of 1 to this number, one for all or (b,); None = it does not."""
    track_inputs: bool = False
    """`forward` takes `tracks`, maps of tracks that the motion follows."""

    def prepare(self, context: DenoiserContext) -> dict[str, Any]:
        """Return the keyword arguments of `forward`, other than the condition, that stay the same at every step of sampling."""
        return {"latent": context.latent}

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them; UserError if the network cannot."""
        raise UserError(f"gradient_checkpointing is not supported by {type(self).__name__}; leave it out")

    @abstractmethod
    def forward(self, sample: Tensor, timestep: Tensor | float, condition: Tensor, latent: Tensor) -> Tensor:
        """Predict the diffusion target.

        Args:
            sample: noisy, (b, ...).
            timestep: one for all or (b,), 0 to 1000.
            condition: (k b, D): the first condition of all samples, then the second, ...
            latent: (b, C, h, w).

        Returns:
            (k b, ...), in the order of `condition`.
        """
