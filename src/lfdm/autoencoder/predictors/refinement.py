"""Refinement of a flow at twice its resolution by local correlation (PWC-Net, arXiv 1709.02371; RAFT, arXiv 2003.12039).

Shapes: b source images, b * t driving frames, clip by clip · flow (b * t, 2, h, w) in half images · occlusion logit
(b * t, 1, h, w).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last
from lfdm.autoencoder.layers import ConvBlock
from lfdm.motion.upsampling import bilinear_logits, convex_double
from lfdm.motion.warp import identity_grid, warp

RADIUS = 2
"""Cells to each side in which a counterpart is sought: a cell of the coarser flow, which is all that it can be wrong by."""
OFFSETS = [(dx, dy) for dy in range(-RADIUS, RADIUS + 1) for dx in range(-RADIUS, RADIUS + 1)]
INITIAL_LOG_SCALE = 2.5
"""As in global matching: the softmax over the window starts soft."""
STATE_CHANNELS = 5
"""Flow, displacement to the best match in the window, and occlusion."""
HEAD_CHANNELS = 4
"""A factor of the matched displacement, a residual flow and an occlusion logit."""


@dataclass(frozen=True, eq=False)
class FlowState:
    """Flow of b * t frames, and what the next scale needs to refine it."""

    flow: Tensor
    """In half images, (b * t, 2, h, w)."""
    occlusion: Tensor
    """Logit of the visibility, (b * t, 1, h, w)."""
    hidden: Tensor
    """Features that describe flow and occlusion, (b * t, c, h, w)."""

    @classmethod
    def stack_frames(cls, states: Sequence["FlowState"]) -> "FlowState":
        """Combine t states of one frame each of b clips, (b, ...), in the order of the frames: (b * t, ...)."""
        if len(states) == 1:
            return states[0]
        return cls(*(torch.stack([getattr(s, f.name) for s in states], dim=1).flatten(0, 1) for f in fields(cls)))


class LocalRefinement(nn.Module):
    """Double the resolution of a flow and correct it by at most `RADIUS` cells.

    The flow is doubled convexly with weights from the hidden state, which knows where the limbs of the driving frame end. Each
    cell is then compared with the cells around its counterpart in the source. All sizes and scales share these weights: flow is
    corrected in cells. The head starts at zero, so that an untrained refinement only doubles the flow.

    Args:
        channels: of image features and hidden state.
        carried: of the hidden state that is carried to the finer scale.
        compared: of the features that are compared.
    """

    def __init__(self, channels: int, *, carried: int, compared: int) -> None:
        super().__init__()
        self.to_weights = zero_convolution(channels, len(bilinear_logits()))
        self.to_weights.bias = nn.Parameter(bilinear_logits())
        self.to_fine = nn.Conv2d(channels, carried, 1)
        self.projection = nn.Conv2d(channels, compared, 1)
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))
        inputs = carried + channels + compared + len(OFFSETS) + STATE_CHANNELS
        self.update = nn.Sequential(ConvBlock(inputs, channels), ConvBlock(channels, channels))
        self.head = zero_convolution(channels, HEAD_CHANNELS)

    def forward(self, state: FlowState, source: Tensor, driving: Tensor) -> FlowState:
        """Refine flow at (h, w) to (2h, 2w).

        Args:
            source: features (b, channels, 2h, 2w).
            driving: features (b * t, channels, 2h, 2w).
        """
        weights = self.to_weights(state.hidden)
        flow, occlusion = convex_double(torch.cat((state.flow, state.occlusion), dim=1), weights).split((2, 1), dim=1)
        hidden = F.interpolate(self.to_fine(state.hidden), size=driving.shape[-2:], mode="bilinear", align_corners=False)
        targets, queries = (F.normalize(self.projection(x).float(), dim=1) for x in (source, driving))
        targets = warp_features(targets, flow, len(driving) // len(source))
        correlation = correlate(queries, targets)
        local = self._best_match(correlation, flow)
        known = (flow.detach(), local.detach(), occlusion.detach())
        x = torch.cat([part.to(driving.dtype) for part in (hidden, driving, targets, correlation, *known)], dim=1)
        hidden = self.update(channels_last(x))
        head = self.head(hidden).float()
        flow = flow + head[:, :1] * local + _to_half_images(RADIUS * torch.tanh(head[:, 1:3]), flow)
        return FlowState(flow, occlusion + head[:, 3:], hidden)

    def _best_match(self, correlation: Tensor, flow: Tensor) -> Tensor:
        """Return the mean change of the flow (n, 2, h, w) to the matches in the window, weighted by a softmax of the correlation.

        A match d cells away was warped by the flow of its own cell: it stands for the flow d + flow(x + d).
        """
        probability = torch.softmax(self.log_scale.exp() * correlation, dim=1)
        flow = flow.detach()
        change = torch.zeros_like(flow)
        for k, ((dx, dy), neighbour) in enumerate(zip(OFFSETS, _window(flow), strict=True)):
            offset = _to_half_images(torch.tensor([dx, dy], dtype=flow.dtype, device=flow.device).view(1, 2, 1, 1), flow)
            change = change + probability[:, k : k + 1] * (offset + neighbour - flow)
        return change


def correlate(queries: Tensor, targets: Tensor) -> Tensor:
    """Return the inner product of every cell with the cells in the window around it: (n, 25, h, w), in the order of `OFFSETS`.

    Args:
        queries, targets: (n, c, h, w). Cells outside the image are copies of its edge.
    """
    return torch.stack([(queries * neighbour).sum(1) for neighbour in _window(targets)], dim=1)


def _window(x: Tensor) -> Iterator[Tensor]:
    """Yield `x` (n, c, h, w) shifted by each of `OFFSETS`, so that cell p has the value of p + offset."""
    h, w = x.shape[-2:]
    padded = F.pad(x, (RADIUS,) * 4, mode="replicate")
    for dx, dy in OFFSETS:
        yield padded[:, :, RADIUS + dy : RADIUS + dy + h, RADIUS + dx : RADIUS + dx + w]


def warp_features(source: Tensor, flow: Tensor, t: int) -> Tensor:
    """Warp source features (b, c, h, w) by flow (b * t, 2, h, w), without gradient through the flow."""
    grid = identity_grid(*flow.shape[-2:], corners=False, device=flow.device) + flow.detach().permute(0, 2, 3, 1)
    grid = rearrange(grid, "(b t) h w xy -> b t h w xy", t=t)
    return channels_last(rearrange(warp(source, grid, padding_mode="border"), "b c t h w -> (b t) c h w"))


def zero_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution that starts at zero."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _to_half_images(cells: Tensor, like: Tensor) -> Tensor:
    """Convert a displacement (n, 2, ...) from cells of the grid of `like` (n, c, h, w) to half images."""
    height, width = like.shape[-2:]
    return torch.cat((cells[:, :1] * (2 / width), cells[:, 1:] * (2 / height)), dim=1)
