"""Figures of one dragged video: is the limb at the asked place, and only there?

Shapes: flow (t, 2, H, W) in pixels · frames (t, H, W, 3) uint8 · grid positions (H, W, 2), (x, y).
"""

import numpy as np
import torch
from scipy import ndimage

from benchmarks.control.scenes import SIDE, DragScene
from lfdm.motion.motion import Motion
from lfdm.motion.tracks import find_tracks
from lfdm.pipeline.pipeline import LatentFlowPipeline

PATCH = 3
"""Half the side of the patch that must arrive."""
LIMB_RADIUS, LIMB_TOLERANCE = 4.0, 1.5
"""Distance of a limb's cells from the asked place, and of their displacement from the asked one, in pixels."""
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
    source, target = np.array(scene.source), np.array(scene.target)
    flow = np.moveaxis(pixel_flow(motion)[-1], 0, -1)
    shown = positions() + flow
    near = np.linalg.norm(positions() - target, axis=-1) <= LIMB_RADIUS
    column, row = np.clip(np.floor(shown), 0, SIDE - 1).astype(int).T
    on_figure = scene.figure[row, column].T
    limb = near & on_figure
    wanted = np.linalg.norm(flow - (source - target), axis=-1) <= LIMB_TOLERANCE
    x, y = np.floor(source).astype(int)
    warped = on_figure & (motion.resize((SIDE, SIDE)).occlusion[0, 0, -1].cpu().numpy() > 0.5)
    return {
        "marker_distance": marker_distance(pipe, scene, motion),
        "path_distance": path_distance(scene, motion),
        "patch_difference": patch_difference(scene, frames[-1]),
        "limb_share": float((wanted & limb).sum() / max(1, near.sum())),
        "vacated": float(np.linalg.norm(shown[y, x] - source) > VACATED or not warped[y, x]),
        "islands": float(count_pieces(warped) - count_pieces(scene.figure)),
        "folded": folded_share(flow),
    }


def marker_distance(pipe: LatentFlowPipeline, scene: DragScene, motion: Motion) -> float:
    """Put a marker of 3x3 pixels on the point and return its distance from the asked place in the last frame; `SIDE` if lost."""
    x, y = np.floor(scene.source).astype(int)
    marked = scene.image.copy()
    marked[y - 1 : y + 2, x - 1 : x + 2] = MARKER
    both = pipe.animate(np.stack([scene.image, marked]), Motion.concatenate([motion] * 2, dim=0), output_type="uint8")
    assert isinstance(both.warped, np.ndarray)
    shown = motion.resize((SIDE, SIDE)).occlusion[0, 0, -1].cpu().numpy()
    change = shown * np.abs(both.warped[1, -1].astype(float) - both.warped[0, -1]).sum(-1)
    if change.max() < 30:
        return float(SIDE)
    weight = np.where(change >= change.max() / 3, change, 0)
    centre = (positions() * weight[..., None]).sum((0, 1)) / weight.sum()
    offset = np.array([x, y]) + 0.5 - np.array(scene.source)  # of the marker from the point
    return float(np.linalg.norm(centre - offset - np.array(scene.target)))


def path_distance(scene: DragScene, motion: Motion) -> float:
    """Return the mean distance over all frames of the followed point from its asked place, in percent of the side (ObjMC).

    Where the point is not seen, the distance counts between it and what the asked place shows.
    """
    asked = scene.place(motion.num_frames).tracks
    found = find_tracks(motion, asked.source)
    followed = (found.position - asked.position)[0].norm(dim=-1)
    grid = asked.position[0][:, None, None]  # (t, 1, 1, 2)
    flow = torch.nn.functional.grid_sample(motion.flow[0].transpose(0, 1), grid, align_corners=False, padding_mode="border")
    missed = (asked.source - asked.position[0] - flow[:, :, 0, 0]).norm(dim=-1)
    return 100 * float(torch.where(found.visible[0], followed, missed).mean()) / 2


def patch_difference(scene: DragScene, frame: np.ndarray) -> float:
    """Return the mean difference, 0 to 255, between the figure in the patch around the point and around the asked place."""
    x, y = np.floor(scene.source).astype(int)
    patch = scene.image[y - PATCH : y + PATCH + 1, x - PATCH : x + PATCH + 1].astype(float)
    mask = scene.figure[y - PATCH : y + PATCH + 1, x - PATCH : x + PATCH + 1]
    u, v = np.floor(scene.target).astype(int)
    other = np.pad(frame, ((PATCH, PATCH), (PATCH, PATCH), (0, 0)), mode="edge")[v : v + 2 * PATCH + 1, u : u + 2 * PATCH + 1]
    difference = np.abs(patch - other[: patch.shape[0], : patch.shape[1]]).mean(-1)
    return float(difference[mask].mean()) if mask.any() else float("nan")


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
