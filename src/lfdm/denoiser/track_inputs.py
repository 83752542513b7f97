"""`TrackInputs`: what maps of tracks add to the input and the output of the motion U-Net.

Legend: b clips, t frames, h w latent size, p patch size, c channels, as in `lfdm.denoiser.unet3d`. Maps of tracks
(b, TRACK_CHANNELS, t, h, w) are described in `lfdm.motion.tracks`.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from lfdm.config.models import TRACK_CHANNELS
from lfdm.denoiser.blocks import FrameConv2d
from lfdm.denoiser.levels import Head
from lfdm.motion.tracks import FLOW_SCALE, LIMB, WIDTHS, near_tracks
from lfdm.motion.warp import flow_to_grid, warp

APPEARANCE_CHANNELS = 12
"""Channels of the image that is moved along with the tracks."""
HIDDEN_CHANNELS = 64
GAIN = 8.0
"""Factor of the two layers that start at zero, so that Adam's small steps move them far within a hundred steps."""


class TrackInputs(nn.Module):
    """Adds nothing before it is trained, and nothing where there are no tracks.

    The input is the maps and the image moved by their flow, which shows what a cell would hold if it moved with the tracks near
    it. The output gets the flow of the maps, weighted in every cell: close to tracks it is nearly the answer.
    """

    def __init__(self, dim: int, latent_channels: int, patch_size: int, num_groups: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        area = patch_size**2
        self.appearance = nn.Conv2d(latent_channels, APPEARANCE_CHANNELS, 1, bias=False)
        self.maps_in = FrameConv2d((TRACK_CHANNELS + APPEARANCE_CHANNELS) * area, HIDDEN_CHANNELS, 3, padding=1, bias=False)
        self.into = nn.Linear(HIDDEN_CHANNELS, dim, bias=False)
        self.weights = Head(2 * dim, dim, len(WIDTHS) * area, num_groups=num_groups)
        for layer in (self.into, self.weights.out):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.out.bias)

    def embed(self, latent: Tensor, tracks: Tensor) -> Tensor:
        """Return what tracks add to the input: (b, t, h/p, w/p, dim).

        Args:
            latent: (b, latent_channels, h, w).
            tracks: (b, TRACK_CHANNELS, t, h, w).
        """
        flow, weight = self._flow(tracks)[:, LIMB], near_tracks(tracks)
        grid = flow_to_grid(flow / FLOW_SCALE, corners=False)
        moved = weight * warp(self.appearance(latent), grid, padding_mode="border")
        maps = torch.cat((tracks, moved.to(tracks.dtype)), dim=1)
        p = self.patch_size
        patches = rearrange(maps, "b c t (h i) (w j) -> b t h w (c i j)", i=p, j=p)
        return GAIN * self.into(nn.functional.silu(self.maps_in(patches)))

    def shift(self, features: Tensor, tracks: Tensor) -> Tensor:
        """Return what tracks add to the flow of the output: (b, 2, t, h, w).

        Args:
            features: (b, t, h/p, w/p, 2 dim), those of the output heads.
            tracks: (b, TRACK_CHANNELS, t, h, w).
        """
        p = self.patch_size
        weights = rearrange(self.weights(features), "b t h w (n i j) -> b n 1 t (h i) (w j)", i=p, j=p)
        return GAIN * (weights * self._flow(tracks)).sum(1)

    @staticmethod
    def _flow(tracks: Tensor) -> Tensor:
        """Return the flow of every width, (b, n, 2, t, h, w), in the unit of the maps."""
        return tracks[:, : 3 * len(WIDTHS)].unflatten(1, (len(WIDTHS), 3))[:, :, :2]
