"""`LearnedCodec`: the motion of a whole clip as one image of learned coefficients, whatever the number of frames.

Patches of a few cells are followed over the whole clip, which lasts from tau = 0 to tau = 1; a clip's motion is a sum of the
principal components of the training clips' patches. LaMD (arXiv 2304.11603) learns such a latent with networks; the components
have a closed form, are linear, and show any instant.

Shapes: motion see `lfdm.motion.motion` · sample (b, K / PATCH^2, 1, h, w), the K coefficients of every patch at its cells ·
inside, values (b, 3, n, h, w) are flow x, flow y and weighted occlusion at n instants, patches (b, v, h / PATCH, w / PATCH) with
v = 3 n PATCH^2.
"""

import math
from collections.abc import Iterable
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.config.checks import check_arguments, check_integer
from lfdm.config.diffusion import LEARNED_COMPONENTS, LEARNED_PATCH
from lfdm.config.registration import register_to_config
from lfdm.errors import UserError
from lfdm.folders.components import Model
from lfdm.motion.codec import MIN_STD, MotionCodec
from lfdm.motion.instants import MIN_FRAMES, NUM_KNOTS, instants, interpolation
from lfdm.motion.motion import Motion

PATCH = LEARNED_PATCH
OCCLUSION_WEIGHT = 0.1
"""Error of flow, in half images, that is as bad as an error of 1 of occlusion."""
NUM_VALUES = 3 * NUM_KNOTS * PATCH**2
"""Numbers of a patch at all knots, v."""


class LearnedCodec(Model, MotionCodec):
    """Principal components, over space and time, of patches of motion.

    More frames of one sample are the same motion, slower. Until it is `measured`, a codec has arbitrary components.

    Args:
        num_components: K, a multiple of `PATCH`^2.
    """

    corners = False
    components: Tensor
    """(K, v), of unit length."""
    center: Tensor
    """(v,), the mean patch."""
    std: Tensor
    """(K,), by which coefficients are divided."""
    low: Tensor
    """(K,), smallest coefficients of training clips, after division; -inf = not clamped."""
    high: Tensor
    """(K,), the largest ones."""

    @register_to_config
    def __init__(self, *, num_components: int = LEARNED_COMPONENTS) -> None:
        super().__init__()
        check_arguments(LearnedCodec, self.config)
        check_integer("num_components", num_components, PATCH**2, NUM_VALUES)
        if num_components % PATCH**2:
            raise UserError(f"num_components must be a multiple of {PATCH**2}; got {num_components}")
        arbitrary = torch.randn(NUM_VALUES, num_components, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("components", torch.linalg.qr(arbitrary)[0].T.contiguous())
        self.register_buffer("center", torch.zeros(NUM_VALUES))
        self.register_buffer("std", torch.ones(num_components))
        self.register_buffer("low", torch.full((num_components,), -math.inf))
        self.register_buffer("high", torch.full((num_components,), math.inf))

    def sample_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        del num_frames
        if height % PATCH or width % PATCH:
            raise UserError(f"height and width of the motion must be multiples of {PATCH} for this codec; got {height}x{width}")
        return (len(self.std) // PATCH**2, 1, height, width)

    def encode(self, motion: Motion) -> Tensor:
        """Return the sample of a `Motion` of 3 frames or more."""
        patches = _to_patches(self._check(motion))
        coefficients = torch.einsum("kv,bvhw->bkhw", self.components.float(), patches - self.center.float()[:, None, None])
        return to_cells(coefficients / self._per_component("std"))

    def decode(self, sample: Tensor, num_frames: int) -> Motion:
        if sample.ndim != 5 or sample.shape[1:3] != (len(self.std) // PATCH**2, 1) or num_frames < 1:
            raise UserError(f"sample must be (b, {len(self.std) // PATCH**2}, 1, h, w); got {tuple(sample.shape)}")
        coefficients = to_components(sample.float()) * self._per_component("std")
        components, center = self.at(instants(num_frames))
        patches = torch.einsum("kv,bkhw->bvhw", components, coefficients) + center[:, None, None]
        values = rearrange(patches, "b (c t i j) h w -> b c t (h i) (w j)", c=3, i=PATCH, j=PATCH)
        return Motion(values[:, :2], (values[:, 2:] / OCCLUSION_WEIGHT).clamp(0, 1), self.corners).from_rest()

    def at(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Return the components and the mean patch at instants tau (t,): (K, 3 t PATCH^2) and (3 t PATCH^2,), float32."""
        weights = interpolation(tau, NUM_KNOTS).to(self.components.device, torch.float32)  # (t, n)
        form = {"c": 3, "i": PATCH, "j": PATCH}
        functions = rearrange(self.components.float(), "k (c n i j) -> n (k c i j)", **form)
        components = rearrange(weights @ functions, "t (k c i j) -> k (c t i j)", k=len(self.std), **form)
        means = rearrange(self.center.float(), "(c n i j) -> n (c i j)", **form)
        return components, rearrange(weights @ means, "t (c i j) -> (c t i j)", **form)

    def clamp(self, sample: Tensor) -> Tensor:
        coefficients = to_components(sample)
        low, high = (self._per_component(name).to(sample.dtype) for name in ("low", "high"))
        return to_cells(torch.minimum(torch.maximum(coefficients, low), high))

    def energy(self, height: int, width: int) -> Tensor:
        variance = self._per_component("std").square()[None]
        return to_cells(variance.expand(1, -1, height // PATCH, width // PATCH))[0]

    def measured(self, motions: Iterable[Motion], *, clamp: bool = True) -> Self:
        """Return a codec with the components of training motions, and their range; `motions` is iterated once or twice.

        Raises:
            UserError: no motions, clips of fewer than 3 frames, or values that are not finite.
        """
        total, moments = torch.zeros(NUM_VALUES).double(), torch.zeros(NUM_VALUES, NUM_VALUES).double()
        count = 0
        for motion in motions:
            rows = rearrange(_to_patches(self._check(motion)), "b v h w -> v (b h w)").cpu().double()
            total, moments, count = total + rows.sum(1), moments + rows @ rows.T, count + rows.shape[1]
        if count == 0:
            raise UserError("motions is empty; at least one is needed to measure their components")
        if not torch.isfinite(moments).all():
            raise UserError("motions must be finite; got NaN or infinite values")
        center = total / count
        variance, vectors = torch.linalg.eigh(moments / count - torch.outer(center, center))
        found = type(self)(num_components=len(self.std))
        kept = len(self.std)
        found.components.copy_(vectors.flip(1)[:, :kept].T)
        found.center.copy_(center)
        found.std.copy_(variance.flip(0)[:kept].clamp(min=MIN_STD**2).sqrt())
        if clamp:
            found._measure_range(motions)
        return found

    def _measure_range(self, motions: Iterable[Motion]) -> None:
        low, high = -self.low, -self.high
        for motion in motions:
            coefficients = to_components(self.encode(motion)).transpose(0, 1).flatten(1).cpu()
            low, high = torch.minimum(low, coefficients.amin(1)), torch.maximum(high, coefficients.amax(1))
        self.low.copy_(low)
        self.high.copy_(high)

    def _check(self, motion: Motion) -> Motion:
        if motion.corners or motion.num_frames < MIN_FRAMES:
            got = f"corners={motion.corners} and {motion.num_frames} frames"
            raise UserError(f"motion must have corners=False and {MIN_FRAMES} frames or more with this codec; got {got}")
        return motion

    def _per_component(self, name: str) -> Tensor:
        return getattr(self, name).float()[:, None, None]


def _to_patches(motion: Motion) -> Tensor:
    """Return the patches (b, v, h / PATCH, w / PATCH) of a motion, its frames interpolated to the knots."""
    values = torch.cat((motion.flow, OCCLUSION_WEIGHT * motion.occlusion), dim=1).float()
    if motion.num_frames != NUM_KNOTS:
        to_knots = interpolation(instants(NUM_KNOTS), motion.num_frames).to(values)
        values = torch.einsum("nt,bcthw->bcnhw", to_knots, values)
    return rearrange(values, "b c n (h i) (w j) -> b (c n i j) h w", i=PATCH, j=PATCH)


def to_cells(coefficients: Tensor) -> Tensor:
    """(b, K, h / PATCH, w / PATCH) -> (b, K / PATCH^2, 1, h, w)."""
    return F.pixel_shuffle(coefficients, PATCH).unsqueeze(2)


def to_components(sample: Tensor) -> Tensor:
    """(b, K / PATCH^2, 1, h, w) -> (b, K, h / PATCH, w / PATCH)."""
    return F.pixel_unshuffle(sample[:, :, 0], PATCH)
