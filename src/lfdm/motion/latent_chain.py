"""`LatentChain`: videos of a `LearnedCodec` that are longer than the clips of training, as latents one after another.

Every latent stands for `span` frames of its own, as in training. Its first frames lead from the source image to where the
latent before it ends, and are not shown. The next ones are the last frames of that latent: decoding is linear, so that they are
a linear observation of the coefficients. Only the frames after them are new:

    latent 0   0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
    latent 1                  . . . .  12 13 14 15 16 17 18 19 20 21 22 23     (. = not shown)

All latents are relative to the one source image.

Shapes: sample (b, c, n, h, w), n latents (b, c, 1, h, w) of the codec · coefficients (b, K, h / PATCH, w / PATCH) · v values of a
patch in the frames of an overlap.
"""

import math

import torch
from torch import Tensor

from lfdm.motion.codec import SampleSpace
from lfdm.motion.instants import instants
from lfdm.motion.learned_codec import LearnedCodec, to_cells, to_components
from lfdm.motion.motion import Motion

RUN_UP = 1 / 4
"""Part of a latent that leads from the source image to the frames before it, and is not shown."""
OVERLAP = 1 / 4
"""Part of a latent that shows the last frames of the one before it."""
DAMPING = 0.01
"""Standard deviation, in half images, of the difference that is left where latents overlap. Differences that only components of
little variance could remove remain."""


class LatentChain(SampleSpace):
    """Samples of videos that consist of several latents of a codec; each latent shows `span` frames."""

    def __init__(self, codec: LearnedCodec, span: int) -> None:
        self.codec, self.span = codec, span
        self.run_up, self.overlap = (max(1, round(part * span)) for part in (RUN_UP, OVERLAP))
        self.stride = span - self.run_up - self.overlap
        tau = instants(span)
        std = codec.std.float()[:, None]
        (end, self._end_center), (start, self._start_center) = (
            codec.at(tau[first : first + self.overlap]) for first in (span - self.overlap, self.run_up)
        )
        self._end, self._start = std * end, std * start  # (K, v)
        gram = (self._start.T @ self._start).cpu().double()
        damped = gram + DAMPING**2 * torch.eye(len(gram), dtype=gram.dtype)
        self._gain = torch.linalg.solve(damped, self._start.T.cpu().double()).T.to(std)

    def num_latents(self, num_frames: int) -> int:
        """Return the number of latents of a video."""
        return 1 + max(0, math.ceil((num_frames - self.span) / self.stride))

    def sample_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        channels, _, *size = self.codec.sample_shape(self.span, height, width)
        return (channels, self.num_latents(num_frames), *size)

    def clamp(self, sample: Tensor) -> Tensor:
        """Clamp every latent to the range of training samples, then move it to where it agrees with the one before it.

        Coefficients of a patch are normal and independent of each other in training, so that their mean given the observed
        frames is a linear regression. Correcting predicted clean samples by it is the null-space method of DDNM (2212.00490).
        """
        latents = [self.codec.clamp(latent) for latent in sample.split(1, dim=2)]
        for i in range(1, len(latents)):
            latents[i] = self._agreeing(latents[i], latents[i - 1])
        return torch.cat(latents, dim=2)

    def decode(self, sample: Tensor, num_frames: int) -> Motion:
        """Return the motion of a video; over an overlap it turns from one latent's to the next one's."""
        weight = (torch.arange(1, self.overlap + 1, device=sample.device) / (self.overlap + 1)).view(1, 1, -1, 1, 1)
        first, *others = (self.codec.decode(latent, self.span) for latent in sample.split(1, dim=2))
        parts = [first]
        for motion in others:
            before, new = parts.pop(), motion.frames(self.run_up, self.span)
            kept = before.num_frames - self.overlap
            shared = _blend(before.frames(kept, before.num_frames), new.frames(0, self.overlap), weight)
            parts += [before.frames(0, kept), shared, new.frames(self.overlap, new.num_frames)]
        return Motion.concatenate(parts, dim=2).frames(0, num_frames)

    def over_time(self, weights: Tensor) -> Tensor:
        """Return the mean weights of the frames that each latent adds."""
        parts = (weights[:, : self.span], *weights[:, self.span :].split(self.stride, dim=1))
        return torch.stack([part.mean(1) for part in parts], dim=1)

    def _agreeing(self, latent: Tensor, before: Tensor) -> Tensor:
        """Return a latent whose first shown frames are the last ones of the latent before it."""
        seen = torch.einsum("kv,bkhw->bvhw", self._end, to_components(before)) + self._end_center[:, None, None]
        own = torch.einsum("kv,bkhw->bvhw", self._start, to_components(latent)) + self._start_center[:, None, None]
        return latent + to_cells(torch.einsum("kv,bvhw->bkhw", self._gain, seen - own))


def _blend(a: Motion, b: Motion, weight: Tensor) -> Motion:
    """Return a motion of the frames of `a` and `b`, with a `weight` of `b`."""
    return Motion(torch.lerp(a.flow, b.flow, weight), torch.lerp(a.occlusion, b.occlusion, weight), a.corners)
