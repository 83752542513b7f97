import numpy as np
import pytest
import torch
from torch import Tensor

from lfdm.autoencoder.predictors.region_geometry import (
    MIN_VARIANCE,
    Regions,
    heatmap_regions,
    invert_2x2,
    multiply_2x2,
    principal_axes,
    region_heat,
    relative_affine,
)
from lfdm.autoencoder.predictors.regions import RegionMotionPredictor
from lfdm.config.predictors import RegionConfig
from lfdm.motion.warp import identity_grid


def random_covariances(count: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    root = torch.randn(count, 2, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return root @ root.mT + 0.01 * torch.eye(2, dtype=dtype)


def make_regions(shift: Tensor, covariance: Tensor) -> Regions:
    heatmap = torch.full((*shift.shape[:2], 4, 4), 1 / 16)
    return Regions(shift, covariance, principal_axes(covariance), heatmap)


@pytest.fixture
def predictor() -> RegionMotionPredictor:
    torch.manual_seed(0)
    config = RegionConfig(num_regions=3, channels=4, flow_channels=4, max_channels=16, depth=2)
    return RegionMotionPredictor(config, stride=4, corners=True, padding_mode="zeros").eval()


@pytest.mark.parametrize("corners", [True, False])
def test_moments_of_a_gaussian_heatmap(corners: bool) -> None:
    mean = torch.tensor([0.1, -0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.03, 0.01], [0.01, 0.02]], dtype=torch.float64)
    offset = identity_grid(96, 128, corners=corners).double() - mean
    heat = torch.exp(-0.5 * (offset @ covariance.inverse() * offset).sum(-1))
    regions = heatmap_regions((heat / heat.sum()).float()[None, None], corners=corners)
    torch.testing.assert_close(regions.shift[0, 0].double(), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(regions.covariance[0, 0].double(), covariance, atol=1e-5, rtol=0)


def test_moments_of_two_points_are_exact_and_in_xy_order() -> None:
    heatmap = torch.zeros(1, 1, 3, 5)
    heatmap[0, 0, 1, 0] = heatmap[0, 0, 1, 4] = 0.5
    regions = heatmap_regions(heatmap, corners=True)
    assert regions.shift.tolist() == [[[0.0, 0.0]]]
    assert regions.covariance.tolist() == [[[[1.0, 0.0], [0.0, 0.0]]]]
    torch.testing.assert_close(regions.affine[0, 0], torch.diag(torch.tensor([1.0, MIN_VARIANCE**0.5])))


def test_principal_axes_agree_with_numpy() -> None:
    covariance = random_covariances(500)
    affine = principal_axes(covariance)
    torch.testing.assert_close(affine @ affine.mT, covariance)
    gram = (affine.mT @ affine).numpy()
    np.testing.assert_allclose(gram[:, 0, 1], 0, atol=1e-12)
    lengths = np.stack((gram[:, 1, 1], gram[:, 0, 0]), -1)
    np.testing.assert_allclose(lengths, np.linalg.eigvalsh(covariance.numpy()), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relative_affine_equals_the_form_by_singular_values(dtype: torch.dtype) -> None:
    covariance = random_covariances(4000, dtype=dtype).unflatten(0, (2, 2000, 1))
    shift = torch.zeros(2000, 1, 2)
    ours = relative_affine(make_regions(shift, covariance[0]), make_regions(shift, covariance[1]))

    u, d, _ = torch.linalg.svd(covariance.double())
    affine = u * d.sqrt().unsqueeze(-2)
    theirs = affine[0] @ affine[1].inverse()
    theirs = theirs * theirs[..., :1, :1].sign()
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    settled = (theirs[..., 0, 0].abs() > 1e-3)[..., None, None]  # where rounding cannot decide the sign
    torch.testing.assert_close(ours.double() * settled, theirs * settled, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("covariance", [[[0.1, 0.0], [0.0, 0.1]], [[0.0, 0.0], [0.0, 0.0]], [[0.2, 0.0], [0.0, 0.0]]])
def test_gradients_are_finite_where_the_axes_are_undefined(covariance: list[list[float]]) -> None:
    matrix = torch.tensor([[covariance]], requires_grad=True)
    regions = make_regions(torch.zeros(1, 1, 2), matrix)
    other = make_regions(torch.zeros(1, 1, 2), torch.tensor([[[[0.2, 0.05], [0.05, 0.1]]]]))
    (relative_affine(regions, other).sum() + relative_affine(other, regions).sum()).backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()


def test_gradient_of_axes_matches_finite_differences() -> None:
    covariance = random_covariances(20).requires_grad_()
    assert torch.autograd.gradcheck(principal_axes, (covariance,))


def test_regions_of_a_still_clip_do_not_move_even_when_they_are_one_pixel() -> None:
    heatmap = torch.rand(2, 3, 8, 8).flatten(2).softmax(-1).view(2, 3, 8, 8)
    heatmap[1] = 0
    heatmap[1, :, 2, 5] = 1
    regions = heatmap_regions(heatmap, corners=True)
    identity = torch.eye(2).expand(2, 3, 2, 2)
    torch.testing.assert_close(relative_affine(regions, regions), identity, atol=1e-5, rtol=0)


def test_a_turned_region_gives_its_rotation() -> None:
    turn = torch.tensor(0.4)
    rotation = torch.stack((turn.cos(), -turn.sin(), turn.sin(), turn.cos())).view(1, 1, 2, 2)
    covariance = torch.diag(torch.tensor([0.2, 0.05])).expand(1, 1, 2, 2)
    shift = torch.zeros(1, 1, 2)
    source = make_regions(shift, rotation @ covariance @ rotation.mT)
    torch.testing.assert_close(relative_affine(source, make_regions(shift, covariance)), rotation)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.75])
def test_a_region_that_turns_in_a_rectangle_gives_its_rotation_in_pixels(aspect: float) -> None:
    """Coordinates are relative to the image: a rotation in pixels is D R D^-1 with D = diag(1 / aspect, 1)."""
    turn = torch.tensor(0.4, dtype=torch.float64)
    rotation = torch.stack((turn.cos(), -turn.sin(), turn.sin(), turn.cos())).view(2, 2)
    to_relative = torch.diag(torch.tensor([1 / aspect, 1.0], dtype=torch.float64))
    at_rest = torch.diag(torch.tensor([0.2, 0.05], dtype=torch.float64))
    covariances = [to_relative @ turned @ to_relative for turned in (rotation @ at_rest @ rotation.mT, at_rest)]
    axes = [principal_axes(covariance[None, None], aspect=aspect) for covariance in covariances]
    for covariance, axis in zip(covariances, axes, strict=True):
        torch.testing.assert_close(axis[0, 0] @ axis[0, 0].mT, covariance)
    heatmap, shift = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 2)
    source, driving = (Regions(shift, one[None, None], axis, heatmap) for one, axis in zip(covariances, axes, strict=True))
    expected = to_relative @ rotation @ to_relative.inverse()
    torch.testing.assert_close(relative_affine(source, driving)[0, 0], expected)


def test_two_by_two_algebra() -> None:
    a, b = random_covariances(10), random_covariances(20)[10:]
    torch.testing.assert_close(multiply_2x2(a, b), a @ b)
    torch.testing.assert_close(invert_2x2(a), a.inverse())


def test_heat_falls_to_exp_minus_half_one_deviation_along_each_axis() -> None:
    regions = make_regions(torch.tensor([[[0.25, -0.5]]]), torch.tensor([[[[0.04, 0.02], [0.02, 0.09]]]]))
    ends = regions.shift[0, 0] + regions.affine[0, 0].mT
    grid = torch.cat((regions.shift[0], ends)).unsqueeze(0)
    torch.testing.assert_close(region_heat(regions, grid)[0, 0, 0], torch.tensor([0.0, -0.5, -0.5]).exp())


@pytest.mark.parametrize("region", [0, 1, 2, 3])
def test_a_mask_that_picks_one_motion_gives_exactly_that_motion(predictor: RegionMotionPredictor, region: int) -> None:
    flow_predictor = predictor.flow_predictor
    bias = torch.full((4,), -1000.0)
    bias[region] = 0.0
    flow_predictor.mask.load_state_dict({"weight": torch.zeros_like(flow_predictor.mask.weight), "bias": bias})
    generator = torch.Generator().manual_seed(1)
    covariance = random_covariances(6, dtype=torch.float32).unflatten(0, (2, 3)) * 0.02
    source, driving = (make_regions(0.5 * torch.randn(1, 3, 2, generator=generator), c[None]) for c in covariance)
    background = torch.randn(1, 2, 3, generator=generator)
    grid = flow_predictor(torch.rand(1, 3, 32, 48), source, driving, background).grid()

    points = identity_grid(8, 12, corners=True)
    if region == 0:
        expected = points @ background[0, :, :2].mT + background[0, :, 2]
    else:
        k = region - 1
        matrix = relative_affine(source, driving)[0, k]
        expected = (points - driving.shift[0, k]) @ matrix.mT + source.shift[0, k]
    torch.testing.assert_close(grid[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_background_starts_as_the_identity(predictor: RegionMotionPredictor) -> None:
    background = predictor.background_predictor(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    assert torch.equal(background, torch.eye(2, 3).expand(2, 2, 3))


def test_frames_and_samples_do_not_influence_each_other(predictor: RegionMotionPredictor) -> None:
    source, driving = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        whole = predictor.predict(source, driving).motion
        for b in range(2):
            for t in range(3):
                alone = predictor.predict(source[b : b + 1], driving[b : b + 1, :, t : t + 1]).motion
                torch.testing.assert_close(whole.flow[b, :, t], alone.flow[0, :, 0], atol=1e-5, rtol=0)
                torch.testing.assert_close(whole.occlusion[b, :, t], alone.occlusion[0, :, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("padding", "size"), [(3, (16, 24)), (0, (10, 18))])
def test_heatmaps_sum_to_one_whatever_the_padding(padding: int, size: tuple[int, int]) -> None:
    config = RegionConfig(num_regions=2, channels=4, flow_channels=4, max_channels=8, depth=1, padding=padding)
    predictor = RegionMotionPredictor(config, stride=2, corners=False, padding_mode="border")
    regions = predictor.region_predictor(torch.rand(3, 3, 32, 48))
    assert regions.heatmap.shape == (3, 2, *size)
    torch.testing.assert_close(regions.heatmap.sum((-2, -1)), torch.ones(3, 2))
    motion = predictor.predict(torch.rand(1, 3, 32, 48), torch.rand(1, 3, 2, 32, 48)).motion
    assert (motion.corners, motion.flow.shape, motion.occlusion.shape) == (False, (1, 2, 2, 16, 24), (1, 1, 2, 16, 24))


def test_geometry_stays_in_float32_under_autocast(predictor: RegionMotionPredictor) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        regions = predictor.region_predictor(torch.rand(2, 3, 32, 32))
        matrix = relative_affine(regions, regions)
        motion = predictor.predict(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 1, 32, 32)).motion
    assert {regions.shift.dtype, regions.covariance.dtype, motion.flow.dtype, motion.occlusion.dtype} == {torch.float32}
    exact = heatmap_regions(regions.heatmap, corners=True)
    assert torch.equal(regions.covariance, exact.covariance)
    torch.testing.assert_close(matrix, torch.eye(2).expand(2, 3, 2, 2), atol=1e-5, rtol=0)
