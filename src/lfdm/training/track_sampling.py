"""Tracks that stage 2 sees in training: points of the clip's own motion, sampled as users give them.

Training begins with dense blocks of flow, from which a network learns most (Motion Prompting, 2412.02700; Motion-I2V,
2401.15977), and goes on with few tracks. Some are cut off, known at single frames only, or points that do not move.

Shapes: motion (3, t, h, w): flow x, flow y (half images), occlusion · maps (TRACK_CHANNELS, t, h, w).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.config.models import TRACK_CHANNELS
from lfdm.motion.motion import Motion
from lfdm.motion.tracks import VISIBLE, Tracks, find_tracks, track_maps
from lfdm.motion.warp import identity_grid

DENSE_PHASE, DENSE_SHARE = 0.02, 0.15
"""Part of the training with dense blocks only, and share of samples with them afterwards."""
BLOCK = 2
"""Side of the blocks in cells."""
MAX_BLOCK_SHARE = 0.5
MAX_TRACKS = 64
"""Most tracks of a sample; their number is log-uniform."""
NO_TRACKS, TAIL, KEYFRAMES, PINS = 0.3, 0.2, 0.2, 0.2
"""Probabilities: a sample without tracks, a track that ends early, a sample known at a few frames only, a sample with pins."""
MAX_KEYFRAMES, MAX_PINS = 4, 4
STILL = 1 / 64
"""Largest displacement of a pin in half images, half a pixel of 64."""
JITTER = 0.25
"""Largest shift of a track in cells."""
EDGE = 0.1 / 32
"""Change of flow from one cell to the next, in half images, that counts as the edge of a part."""
MAX_EDGE_DISTANCE = 4
_PLACES = ("moving", "grid", "middle")
_PLACE_PROBABILITIES = (0.5, 0.25, 0.25)


def sample_track_maps(motion: Tensor, progress: float, rng: np.random.Generator) -> Tensor:
    """Sample tracks of a motion and return their maps (TRACK_CHANNELS, t, h, w); all 0 in a sample without tracks.

    Args:
        motion: float32, with pixel centres.
        progress: done part of the training, 0 to 1.
    """
    size = (motion.shape[-2], motion.shape[-1])
    if rng.random() < NO_TRACKS:
        return torch.zeros(TRACK_CHANNELS, motion.shape[1], *size)
    if progress < DENSE_PHASE or rng.random() < DENSE_SHARE:
        return _dense_maps(motion, rng)
    count = int(2 ** rng.uniform(0, np.log2(MAX_TRACKS) + 1))
    sources = [_sample_sources(motion, min(count, MAX_TRACKS), rng)]
    if rng.random() < PINS:
        sources.append(_sample_pins(motion, rng))
    tracks = find_tracks(Motion(motion[None, :2], motion[None, 2:]), torch.cat(sources))
    cells = torch.tensor([size[1], size[0]]) / 2
    jitter = torch.from_numpy(rng.uniform(-JITTER, JITTER, tracks.source.shape)).float() / cells
    return tracks.shifted(jitter).seen(_sample_visibility(tracks, rng)).maps(size)


def _dense_maps(motion: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the maps of the flow in random blocks, at the same places in all frames."""
    t, h, w = motion.shape[1:]
    blocks = torch.from_numpy(rng.random((-(-h // BLOCK), -(-w // BLOCK))) < rng.uniform(0, MAX_BLOCK_SHARE))
    kept = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:h, :w]
    frame, row, column = (kept & (motion[2] > VISIBLE)).nonzero(as_tuple=True)
    position = identity_grid(h, w, corners=False)[row, column]
    return track_maps(position + motion[:2, frame, row, column].T, position, frame, (t, h, w))


def _sample_sources(motion: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Sample points of the source (count, 2) among those that a random frame shows."""
    t, h, w = motion.shape[1:]
    shown = motion[:, rng.integers(t // 2, t)]  # most has moved in the second half
    weight = {"moving": _movement, "grid": _grid, "middle": _middle}[rng.choice(_PLACES, p=_PLACE_PROBABILITIES)](shown, count)
    weight = (weight * (shown[2] > VISIBLE)).flatten().double().numpy() + 1e-9
    chosen = torch.from_numpy(rng.choice(h * w, min(count, h * w), replace=False, p=weight / weight.sum()))
    return (identity_grid(h, w, corners=False) + shown[:2].permute(1, 2, 0)).reshape(-1, 2)[chosen]


def _movement(shown: Tensor, count: int) -> Tensor:
    """Return how much each cell moves relative to most of the frame, (h, w)."""
    del count
    flow = shown[:2]
    return (flow - flow.flatten(1).median(1).values[:, None, None]).norm(dim=0)


def _grid(shown: Tensor, count: int) -> Tensor:
    """Return 1 in the cells of a regular grid of about `count` cells, 0 elsewhere."""
    h, w = shown.shape[1:]
    step = max(1, int((h * w / count) ** 0.5))
    weight = torch.zeros(h, w)
    weight[step // 2 :: step, step // 2 :: step] = 1
    return weight


def _middle(shown: Tensor, count: int) -> Tensor:
    """Return how far each moving cell is from edges of the flow, (h, w), so that middles of parts are likely."""
    flow = shown[:2]
    change = F.pad((flow[:, :, 1:] - flow[:, :, :-1]).norm(dim=0), (0, 1)) + F.pad(
        (flow[:, 1:] - flow[:, :-1]).norm(dim=0), (0, 0, 0, 1)
    )
    inside = (change < EDGE).float()
    distance = torch.zeros_like(inside)
    for _ in range(MAX_EDGE_DISTANCE):
        distance = distance + inside
        inside = -F.max_pool2d(-inside[None, None], 3, 1, 1)[0, 0]
    return distance.square() * _movement(shown, count)


def _sample_pins(motion: Tensor, rng: np.random.Generator) -> Tensor:
    """Sample a few points (n, 2) that hardly move in any frame."""
    h, w = motion.shape[-2:]
    still = (motion[:2].norm(dim=0).amax(0) < STILL).flatten().nonzero()[:, 0]
    chosen = rng.permutation(len(still))[: rng.integers(1, MAX_PINS + 1)]
    return identity_grid(h, w, corners=False).reshape(-1, 2)[still[torch.from_numpy(chosen)]]


def _sample_visibility(tracks: Tracks, rng: np.random.Generator) -> Tensor:
    """Sample where tracks are known, (n, t): some end early, and in some samples they are known at a few frames only."""
    n, t = tracks.visible.shape
    end = np.where(rng.random(n) < TAIL, rng.integers(1, t, n), t)
    known = np.arange(t) < end[:, None]
    if rng.random() < KEYFRAMES:
        keyframes = rng.choice(np.arange(1, t), min(rng.integers(1, MAX_KEYFRAMES + 1), t - 1), replace=False)
        known = known & np.isin(np.arange(t), keyframes)
    return torch.from_numpy(known)
