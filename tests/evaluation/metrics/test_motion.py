"""Closed-form values of the motion figures for known flows and frames."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lfdm.data.puppets.data_set import render_clip
from lfdm.data.truth import save_truth, truth_path
from lfdm.errors import UserError
from lfdm.evaluation.metrics.motion import (
    ExactMotion,
    ceilings,
    displacement_px,
    flow_epe_ratio,
    least_squares_flow,
    pool,
    upsample,
    warp_px,
    warp_recovery,
)
from lfdm.motion.motion import Motion

INDICES = np.array([0, 2, 3, 5])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, ExactMotion]:
    """Two puppets at 32x32: video (2, 3, 4, 32, 32) and exact motion, read back from truth files."""
    root = tmp_path_factory.mktemp("truth")
    clips = [render_clip(subject, action, 0, size=32, num_frames=6, fps=4) for subject, action in ((0, "wave"), (1, "kick"))]
    paths = []
    for i, rendered in enumerate(clips):
        assert rendered.truth is not None
        paths.append(save_truth(truth_path(root / f"{i}.avi"), rendered.truth))
    video = torch.from_numpy(np.stack([rendered.frames[INDICES] for rendered in clips])).permute(0, 4, 1, 2, 3).float() / 255
    return video, ExactMotion.read(paths, [INDICES, INDICES])


def test_drift_is_the_flow_of_the_background(clip: tuple[Tensor, ExactMotion]) -> None:
    _, exact = clip
    background = ~exact.figure.unsqueeze(1).expand_as(exact.flow)
    drift = exact.drift[..., None, None].expand_as(exact.flow)
    assert exact.drift.abs().max() > 0.05
    assert (exact.flow - drift)[background].abs().max() < 1e-3


def test_exact_flow_epe_ratios_zero_and_one(clip: tuple[Tensor, ExactMotion]) -> None:
    video, exact = clip
    assert pool(flow_epe_ratio(exact.flow, exact))["value"] == 0
    assert pool(warp_recovery(warp_px(video[:, :, 0], exact.flow), video, exact))["value"] == pytest.approx(1, abs=1e-9)
    assert pool(flow_epe_ratio(exact.flow, exact))["num_pixels"] == int(exact.moving().sum()) > 50


def test_knowing_only_the_drift_scores_one(clip: tuple[Tensor, ExactMotion]) -> None:
    _, exact = clip
    drift = exact.drift[..., None, None].expand_as(exact.flow)
    assert pool(flow_epe_ratio(drift, exact))["value"] == pytest.approx(1)


def test_copying_the_first_warp_recoverys_zero_and_perfect_frames_more_than_one(clip: tuple[Tensor, ExactMotion]) -> None:
    video, exact = clip
    assert pool(warp_recovery(video[:, :, :1].expand_as(video), video, exact))["value"] == 0
    assert pool(warp_recovery(video, video, exact))["value"] > 1


def test_scores_pool_pixels_not_clips(clip: tuple[Tensor, ExactMotion]) -> None:
    _, exact = clip
    flow = torch.zeros_like(exact.flow)
    whole = flow_epe_ratio(flow, exact)
    halves = [flow_epe_ratio(flow[i : i + 1], exact.select([i])) for i in range(2)]
    value = pool(whole)["value"]
    assert pool(torch.cat(halves))["value"] == pytest.approx(value)
    assert np.mean([pool(half)["value"] for half in halves]) != pytest.approx(value, abs=1e-4)


def test_only_moving_visible_figure_pixels_count(clip: tuple[Tensor, ExactMotion]) -> None:
    _, exact = clip
    mask = exact.moving()
    assert not mask[:, 0].any()
    spoiled = torch.where(mask.unsqueeze(1), exact.flow, exact.flow + 100)
    assert pool(flow_epe_ratio(spoiled, exact))["value"] == 0
    still = replace(exact, flow=exact.drift[..., None, None].expand_as(exact.flow).contiguous())
    assert pool(flow_epe_ratio(exact.flow, still))["num_pixels"] == 0
    assert np.isnan(pool(flow_epe_ratio(exact.flow, still))["value"])


def test_ceilings_are_perfect_at_stride_one_and_worse_at_coarser_strides(clip: tuple[Tensor, ExactMotion]) -> None:
    video, exact = clip
    fits = [ceilings(video, exact, (32 // stride, 32 // stride)) for stride in (1, 2, 4)]
    for name in ("ceiling", "whole_frame_ceiling"):
        flows, frames = ([pool(fit[name][k])["value"] for fit in fits] for k in range(2))
        assert flows[0] < 1e-3
        assert flows[0] < flows[1] < flows[2] < 0.8
        assert frames[0] == pytest.approx(1, abs=1e-3)
        assert frames[2] < frames[0]
    ceiling, whole_frame = ([pool(sums)["value"] for sums in fits[1][name]] for name in ("ceiling", "whole_frame_ceiling"))
    assert ceiling[0] < whole_frame[0]
    assert ceiling[1] > whole_frame[1]


def test_least_squares_flow_finds_the_coarse_flow_that_was_upsampled() -> None:
    torch.manual_seed(0)
    coarse = torch.randn(1, 2, 3, 8, 8)
    fitted = least_squares_flow(upsample(coarse, (16, 16)), torch.ones(1, 3, 16, 16, dtype=torch.bool), (8, 8))
    assert torch.allclose(fitted, coarse, atol=2e-3)


def test_least_squares_flow_equals_dense_least_squares() -> None:
    torch.manual_seed(0)
    flow = torch.randn(1, 2, 1, 8, 8, dtype=torch.float64)
    mask = torch.rand(1, 1, 8, 8) < 0.8
    columns = [upsample(cell.view(1, 1, 1, 4, 4), (8, 8)).flatten() for cell in torch.eye(16, dtype=torch.float64)]
    matrix = torch.stack(columns, dim=1)[mask.flatten()]
    expected = torch.linalg.lstsq(matrix, flow[0, :, 0].flatten(1)[:, mask.flatten()].T).solution.T
    assert torch.allclose(least_squares_flow(flow, mask, (4, 4)).flatten(3)[0, :, 0], expected, atol=1e-3)


def test_upsampling_is_that_of_motion() -> None:
    motion = Motion(torch.randn(1, 2, 2, 4, 4), torch.ones(1, 1, 2, 4, 4))
    assert torch.allclose(upsample(motion.flow, (16, 16)) * 8, displacement_px(motion, (16, 16)), atol=1e-5)


def test_displacement_is_in_pixels_for_both_conventions() -> None:
    shifted = Motion(torch.tensor([0.25, -0.5]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 4, 4), torch.ones(1, 1, 1, 4, 4))
    pixels = displacement_px(shifted, (16, 16))
    assert torch.allclose(pixels[0, :, 0, 5, 5], torch.tensor([2.0, -4.0]))
    corners = Motion.identity(1, 1, (4, 4), corners=True)
    assert displacement_px(corners, (4, 4))[0, 0, 0, 0].tolist() == pytest.approx([-0.5, -1 / 6, 1 / 6, 0.5])


def test_warp_by_whole_pixels_moves_the_image() -> None:
    image = torch.rand(1, 3, 8, 8)
    flow = torch.zeros(1, 2, 1, 8, 8)
    flow[:, 0] = 2
    assert torch.allclose(warp_px(image, flow)[:, :, 0, :, :6], image[..., 2:], atol=1e-6)


def test_truth_that_is_too_short_or_of_other_shapes_is_refused(tmp_path: Path) -> None:
    paths = []
    for i, size in enumerate((32, 40)):
        truth = render_clip(0, "wave", 0, size=size, num_frames=4).truth
        assert truth is not None
        paths.append(save_truth(tmp_path / f"{i}.truth.npz", truth))
    with pytest.raises(UserError, match="holds 4 frames; frame 5"):
        ExactMotion.read(paths[:1], [INDICES])
    with pytest.raises(UserError, match="differ in shape"):
        ExactMotion.read(paths, [INDICES[:2], INDICES[:2]])
