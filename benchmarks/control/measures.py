"""Figures of one dragged video: is the limb at the target, and only there?

Shapes: flow (t, 2, H, W) in pixels · frames (t, H, W, 3) uint8 · grid positions (H, W, 2), (x, y).
"""

import numpy as np
import torch
from scipy import ndimage

from benchmarks.control.scenes import SIDE, DragScene
from lfdm.motion.motion import Motion
from lfdm.motion.tracks import find_tracks
from lfdm.pipeline.pipeline import LatentFlowPipeline

PATCH_RADIUS = 3.5
"""Radius in pixels of the patch that must arrive."""
LIMB_RADIUS, LIMB_TOLERANCE = 4.0, 1.5
"""Distance in pixels from the dragged point within which a limb counts, and tolerance of distances from that point."""
NUM_ANGLES = 24
"""Rotations of a patch that are tried: limbs turn on their way."""
VACATED = 3.0
"""Distance in pixels from the point to what its old place must show."""
MARKER = (255, 0, 255)
MIN_ISLAND = 4
"""Pixels of the smallest piece of a figure that counts."""


def pixel_flow(motion: Motion, sample: int = 0) -> np.ndarray:
    """Return a motion's flow at the size of frames, (t, 2, H, W) in pixels."""
    flow = motion.samples(sample, sample + 1).resize((SIDE, SIDE)).flow[0] * (SIDE / 2)
    return flow.transpose(0, 1).float().cpu().numpy()


def positions() -> np.ndarray:
    """Return the centres of all pixels."""
    axis = np.arange(SIDE) + 0.5
    return np.stack(np.meshgrid(axis, axis), axis=-1)


def measure_drag(pipe: LatentFlowPipeline, scene: DragScene, motion: Motion, frames: np.ndarray) -> dict[str, float]:
    """Return the figures of the last frame of a drag."""
    source = np.array(scene.source)
    flow = np.moveaxis(pixel_flow(motion)[-1], 0, -1)
    shown = positions() + flow
    on_figure = _read_nearest(scene.figure, shown)
    limb, num_limb_pixels = find_limb(scene)
    x, y = np.floor(source).astype(int)
    warped = on_figure & (motion.resize((SIDE, SIDE)).occlusion[0, 0, -1].cpu().numpy() > 0.5)
    return {
        "marker_distance": marker_distance(pipe, scene, motion),
        "path_distance": path_distance(scene, motion),
        "patch_difference": patch_difference(scene, limb, frames[-1]),
        "limb_share": limb_share(scene, limb, num_limb_pixels, shown),
        "vacated": float(np.linalg.norm(shown[y, x] - source) > VACATED or not warped[y, x]),
        "islands": float(count_pieces(warped) - count_pieces(scene.figure)),
        "folded": folded_share(flow),
    }


def marker_distance(pipe: LatentFlowPipeline, scene: DragScene, motion: Motion) -> float:
    """Put a marker of 3x3 pixels on the point and return its distance from the target in the last frame; `SIDE` if lost.

    The marker is where most of its colour is in one piece: single pixels of the old place are left at the edges of what is there.
    """
    x, y = np.floor(scene.source).astype(int)
    marked = scene.image.copy()
    marked[y - 1 : y + 2, x - 1 : x + 2] = MARKER
    both = pipe.animate(np.stack([scene.image, marked]), Motion.concatenate([motion] * 2, dim=0), output_type="uint8")
    assert isinstance(both.warped, np.ndarray)
    shown = motion.resize((SIDE, SIDE)).occlusion[0, 0, -1].cpu().numpy()
    change = shown * np.abs(both.warped[1, -1].astype(float) - both.warped[0, -1]).sum(-1)
    if change.max() < 30:
        return float(SIDE)
    pieces, count = ndimage.label(change >= change.max() / 3, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    largest = 1 + int(np.argmax(ndimage.sum(change, pieces, np.arange(1, count + 1))))
    centre = np.average(positions().reshape(-1, 2), axis=0, weights=np.where(pieces == largest, change, 0).ravel())
    offset = np.array([x, y]) + 0.5 - np.array(scene.source)  # of the marker from the point
    return float(np.linalg.norm(centre - offset - np.array(scene.target)))


def path_distance(scene: DragScene, motion: Motion) -> float:
    """Return the mean distance over all frames of the followed point from its target, in percent of the side (ObjMC).

    Where the point is not seen, the distance counts between it and what the target shows.
    """
    targets = scene.place(motion.num_frames).tracks
    found = find_tracks(motion, targets.source)
    followed = (found.position - targets.position)[0].norm(dim=-1)
    grid = targets.position[0][:, None, None]  # (t, 1, 1, 2)
    flow = torch.nn.functional.grid_sample(motion.flow[0].transpose(0, 1), grid, align_corners=False, padding_mode="border")
    missed = (targets.source - targets.position[0] - flow[:, :, 0, 0]).norm(dim=-1)
    return 100 * float(torch.where(found.visible[0], followed, missed).mean()) / 2


def limb_share(scene: DragScene, limb: np.ndarray, num_pixels: int, shown: np.ndarray) -> float:
    """Return how much of the limb around the point is around the target: its pixels there, over those of the real clip.

    A pixel counts if it shows a place of the limb that is as far from the point as the pixel is from the target, so that
    the limb may turn on its way. The limb is what the real clip shows there.

    Args:
        limb, num_pixels: see `find_limb`.
        shown: (H, W, 2), the place of the first frame that each pixel of the last frame shows.
    """
    arrived = _moves_along(scene, shown) & _read_nearest(ndimage.binary_dilation(limb, np.ones((3, 3))), shown)
    return min(1.0, float(arrived.sum() / max(1, num_pixels)))


def find_limb(scene: DragScene) -> tuple[np.ndarray, int]:
    """Return what the real clip shows around the target, (H, W) bool in the first frame, and the pixels that show it."""
    real = positions() + scene.real.truth.flow[-1]
    usable = scene.real.truth.figure[-1] & scene.real.truth.visible[-1] & _moves_along(scene, real)
    limb = np.zeros((SIDE, SIDE), bool)
    column, row = np.clip(np.floor(real[usable]), 0, SIDE - 1).astype(int).T
    limb[row, column] = True
    return limb, int(usable.sum())


def _moves_along(scene: DragScene, shown: np.ndarray) -> np.ndarray:
    """Return which pixels around the target show what lies around the point, at the same distance, (H, W) bool."""
    distance = np.linalg.norm(positions() - scene.target, axis=-1)
    from_point = np.linalg.norm(shown - scene.source, axis=-1)
    return (distance <= LIMB_RADIUS) & (np.abs(from_point - distance) <= LIMB_TOLERANCE)


def _read_nearest(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the values of a mask (H, W) at positions (H, W, 2)."""
    column, row = np.moveaxis(np.clip(np.floor(places), 0, SIDE - 1).astype(int), -1, 0)
    return mask[row, column]


def patch_difference(scene: DragScene, limb: np.ndarray, frame: np.ndarray) -> float:
    """Return the mean difference, 0 to 255, between the limb around the point and what is around the target.

    The patch may turn: the least difference over `NUM_ANGLES` rotations counts. `limb` is that of `find_limb`.
    """
    offsets = positions() - SIDE / 2
    offsets = offsets[np.linalg.norm(offsets, axis=-1) <= PATCH_RADIUS]
    before = _sample(scene.image, scene.source + offsets)
    shown = _sample(limb[..., None], scene.source + offsets)[:, 0] > 0.5
    differences = []
    for angle in np.linspace(0, 2 * np.pi, NUM_ANGLES, endpoint=False):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        after = _sample(frame, scene.target + offsets[shown] @ turn.T)
        differences.append(np.abs(after - before[shown]).mean())
    return float(min(differences)) if shown.any() else float("nan")


def _sample(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return values of an image (H, W, C) at positions (n, 2), bilinear: (n, C)."""
    row, column = places[:, 1] - 0.5, places[:, 0] - 0.5
    channels = np.moveaxis(image.astype(float), -1, 0)
    return np.stack([ndimage.map_coordinates(one, (row, column), order=1, mode="nearest") for one in channels], axis=-1)


def count_pieces(mask: np.ndarray) -> int:
    """Return the number of connected pieces of a mask of at least `MIN_ISLAND` pixels."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    sizes = ndimage.sum(mask, labels, np.arange(1, count + 1))
    return int((np.asarray(sizes) >= MIN_ISLAND).sum())


def folded_share(flow: np.ndarray) -> float:
    """Return the share of pixels whose mapping to the source has a negative Jacobian; flow (H, W, 2)."""
    shown = positions() + flow
    along_y, along_x = np.gradient(shown, axis=(0, 1))
    determinant = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
    return float((determinant < 0).mean())


def pin_leakage(motion: Motion, pins: tuple[tuple[float, float], ...]) -> list[float]:
    """Return the mean displacement in pixels at each pinned place over all frames."""
    flow = torch.from_numpy(pixel_flow(motion))
    grid = (2 * torch.tensor(pins) / SIDE - 1).view(1, 1, -1, 2).expand(len(flow), -1, -1, -1)
    read = torch.nn.functional.grid_sample(flow, grid.float(), align_corners=False, padding_mode="border")
    return read[:, :, 0].norm(dim=1).mean(0).tolist()
