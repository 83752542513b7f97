import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.autoencoder.predictors.predictor import LossInputs
from lfdm.config.models import AutoencoderConfig
from lfdm.errors import UserError
from lfdm.folders.model_folder import checked_settings
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, warp

PREDICTORS: dict[str, dict[str, Any]] = {
    "dense": {"type": "dense", "channels": (8, 8, 16, 16), "match_channels": 8},
    "regions": {"type": "regions", "num_regions": 2, "channels": 4, "flow_channels": 4, "max_channels": 8, "depth": 2},
}


def make_autoencoder(kind: Literal["dense", "regions"] = "dense", **overrides: Any) -> LatentFlowAutoencoder:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "channels": 8,
        "max_channels": 16,
        "num_downs": 1,
        "num_res_blocks": 1,
        "predictor": PREDICTORS[kind],
        "corners": False,
        "padding_mode": "border",
    }
    return LatentFlowAutoencoder(**(arguments | overrides)).eval()


def randomise(model: LatentFlowAutoencoder) -> LatentFlowAutoencoder:
    """Perturb every weight, so that the dense predictor estimates motion."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def visible_motion(grid: Tensor) -> Motion:
    """Return a fully visible motion with pixel centres from a grid (h, w, 2)."""
    return Motion.from_grid(grid[None], torch.ones(1, 1, *grid.shape[:2]), corners=False)


@pytest.mark.parametrize("upsampling", ["bilinear", "convex"])
@pytest.mark.parametrize("num_downs", [1, 2, 3])
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 128)])
def test_no_motion_reproduces_the_image_bit_for_bit(size: tuple[int, int], num_downs: int, upsampling: str) -> None:
    model = randomise(make_autoencoder(num_downs=num_downs, upsampling=upsampling))
    image = torch.rand(2, 3, *size)
    small = (size[0] >> num_downs, size[1] >> num_downs)
    with torch.no_grad():
        decoded = model.decode(model.encode(image), Motion.identity(2, 3, small, corners=False))
    expected = image.unsqueeze(2).expand(-1, -1, 3, -1, -1)
    assert torch.equal(decoded.prediction, expected)
    assert torch.equal(decoded.warped, expected)


def test_a_whole_pixel_translation_is_exact_inside() -> None:
    model = make_autoencoder()
    image = torch.rand(1, 3, 32, 32)
    grid = identity_grid(16, 16, corners=False) + torch.tensor([8 * 2 / 32, -4 * 2 / 32])
    with torch.no_grad():
        decoded = model.decode(model.encode(image), visible_motion(grid))
    torch.testing.assert_close(decoded.prediction[0, :, 0, 4:, :-8], image[0, :, :-4, 8:], atol=1e-6, rtol=0)


def test_a_quarter_turn_is_exact_inside() -> None:
    """Bilinear resizing keeps an affine displacement exact but for the outer pixel, where it clamps."""
    model = make_autoencoder()
    image = torch.rand(1, 3, 32, 32)
    x, y = identity_grid(16, 16, corners=False).unbind(-1)
    with torch.no_grad():
        decoded = model.decode(model.encode(image), visible_motion(torch.stack((-y, x), dim=-1)))
    expected = image.rot90(1, (2, 3))
    torch.testing.assert_close(decoded.warped[0, :, 0, 1:-1, 1:-1], expected[0, :, 1:-1, 1:-1], atol=1e-4, rtol=0)


def test_convex_upsampling_starts_near_bilinear() -> None:
    convex, bilinear = (make_autoencoder(num_downs=3, upsampling=kind) for kind in ("convex", "bilinear"))
    image, motion = torch.rand(2, 3, 32, 64), Motion(0.2 * torch.rand(2, 2, 2, 4, 8), 0.2 * torch.rand(2, 1, 2, 4, 8))
    with torch.no_grad():
        upsampled, expected = (model.upsample_motion(image, motion) for model in (convex, bilinear))
    assert upsampled.size == (32, 64)
    torch.testing.assert_close(upsampled.flow, expected.flow, atol=0.06, rtol=0)
    torch.testing.assert_close(upsampled.occlusion, expected.occlusion, atol=0.06, rtol=0)


def test_decode_warps_by_the_upsampled_motion_whatever_grid_it_comes_on() -> None:
    model = randomise(make_autoencoder(num_downs=3, upsampling="convex"))
    image = torch.rand(1, 3, 32, 48)
    coarse = Motion(0.2 * torch.rand(1, 2, 2, 4, 6), torch.rand(1, 1, 2, 4, 6))
    with torch.no_grad():
        features = model.encode(image)
        full = model.upsample_motion(image, coarse)
        assert torch.equal(model.decode(features, coarse).warped, model.decode(features, full).warped)
        for size in ((8, 12), (16, 24)):
            assert model.decode(features, full.reduced(size)).prediction.shape == (1, 3, 2, 32, 48)


def test_a_batch_trains_both_motions() -> None:
    """The first half of a batch is rebuilt from the motion that stage 2 generates, the second half from the refined one."""
    model = randomise(make_autoencoder(num_downs=3, upsampling="convex")).train()
    source, driving = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    result = model(source, driving)
    assert result.motion.size == (4, 4)
    assert result.refined.size == (16, 16)
    for one, row in ((result.motion, 0), (result.refined, 1)):
        whole = model.upsample_motion(source[row : row + 1], one.samples(row, row + 1))
        warped = warp(source[row : row + 1], whole.grid(), padding_mode="border")
        torch.testing.assert_close(result.decoded.warped[row : row + 1], warped, atol=1e-5, rtol=0)
    result.decoded.prediction.sum().backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (48, 112)])
def test_one_set_of_weights_serves_all_sizes(size: tuple[int, int]) -> None:
    model = randomise(make_autoencoder(num_downs=3, upsampling="convex"))
    source, driving = torch.rand(1, 3, *size), torch.rand(1, 3, 2, *size)
    with torch.no_grad():
        coarse, refined = (model.estimate_motion(source, driving, refine=refine) for refine in (False, True))
        assert coarse.size == (size[0] // 8, size[1] // 8)
        assert refined.size == (size[0] // 2, size[1] // 2)
        for motion in (coarse, refined):
            assert model.decode(model.encode(source), motion).prediction.shape == (1, 3, 2, *size)


def test_hidden_pixels_are_inpainted() -> None:
    model = make_autoencoder()
    motion = Motion(torch.zeros(1, 2, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16))
    with torch.no_grad():
        decoded = model.decode(model.encode(torch.rand(1, 3, 32, 32)), motion)
    assert torch.equal(decoded.prediction, decoded.inpainted)


@pytest.mark.parametrize("kind", ["dense", "regions"])
def test_a_batch_equals_single_frames(kind: Literal["dense", "regions"]) -> None:
    model = randomise(make_autoencoder(kind))
    source, driving = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        motion = model.estimate_motion(source, driving)
        whole = model.decode(model.encode(source), motion).prediction
        for b in range(2):
            features = model.encode(source[b : b + 1])
            for t in range(3):
                alone = model.estimate_motion(source[b : b + 1], driving[b : b + 1, :, t])
                torch.testing.assert_close(motion.flow[b, :, t], alone.flow[0, :, 0], atol=1e-4, rtol=0)
                frame = model.decode(features, alone).prediction
                torch.testing.assert_close(whole[b, :, t], frame[0, :, 0], atol=1e-3, rtol=0)
    assert motion.flow.abs().amax() > 1e-3


@pytest.mark.parametrize("kind", ["dense", "regions"])
def test_forward_is_estimate_encode_decode_with_the_losses_of_its_predictor(kind: Literal["dense", "regions"]) -> None:
    model = make_autoencoder(kind)
    source, driving = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        result = model(source, driving)
        motion = model.estimate_motion(source, driving)
        decoded = model.decode(model.encode(source), motion)
    assert torch.equal(result.motion.flow, motion.flow)
    assert torch.equal(result.decoded.prediction, decoded.prediction)
    config = checked_settings(AutoencoderConfig, model.config)
    assert tuple(result.losses) == config.predictor.losses != ()


@pytest.mark.parametrize("kind", ["dense", "regions"])
def test_one_step_of_training_moves_every_weight_that_the_loss_reaches(kind: Literal["dense", "regions"]) -> None:
    model = randomise(make_autoencoder(kind)).train()
    result = model(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    loss = result.decoded.prediction.mean() + result.motion.flow.square().mean()
    if kind == "dense":
        loss = loss + result.losses["match"](LossInputs(torch.empty(0), lambda generate: generate(2, torch.Generator())))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


def test_latent_has_the_stride_and_width_of_the_configuration() -> None:
    features = make_autoencoder(num_downs=2, max_channels=24).encode(torch.rand(2, 3, 32, 64))
    assert features.latent.shape == (2, 24, 8, 16)
    assert [tuple(x.shape[1:]) for x in features.scales] == [(8, 32, 64), (16, 16, 32), (24, 8, 16)]


def test_the_other_convention_is_refused() -> None:
    model = make_autoencoder()
    features = model.encode(torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match=r"motion must have corners=False.*got corners=True"):
        model.decode(features, Motion.identity(1, 1, (16, 16), corners=True))


def test_a_motion_of_another_batch_is_refused() -> None:
    model = make_autoencoder()
    features = model.encode(torch.rand(2, 3, 32, 32))
    with pytest.raises(UserError, match="batch size of the source, 2; got 1"):
        model.decode(features, Motion.identity(1, 1, (16, 16), corners=False))


def test_the_dense_predictor_needs_pixel_centres() -> None:
    with pytest.raises(UserError, match="corners must be False"):
        make_autoencoder("dense", corners=True)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 33, 32), (1, 3, 32, 21)])
def test_images_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"image (must be|height and width)"):
        make_autoencoder().encode(torch.rand(shape))


def test_integer_and_empty_images_are_refused() -> None:
    for image in (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 3, 0, 32), torch.zeros(0, 3, 32, 32)):
        with pytest.raises(UserError, match=r"image must be \(b, 3, H, W\) of floating point in \[0, 1\]"):
            make_autoencoder().encode(image)


def test_pairs_that_do_not_agree_are_refused() -> None:
    model = make_autoencoder()
    with pytest.raises(UserError, match="differ in batch"):
        model.estimate_motion(torch.rand(2, 3, 32, 32), torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match="driving must be"):
        model.estimate_motion(torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32))


@pytest.mark.parametrize(("kind", "multiple"), [("dense", 2), ("regions", 8)])
def test_size_multiple_is_the_smallest_size_that_works(kind: Literal["dense", "regions"], multiple: int) -> None:
    model = make_autoencoder(kind)
    assert model.size_multiple == multiple
    size = multiple * 9
    assert model.estimate_motion(torch.rand(1, 3, size, size), torch.rand(1, 3, size, size)).size == (
        size // 2,
        size // 2,
    )


def test_the_paper_configuration_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        model = LatentFlowAutoencoder()
    published = 66_004_557
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert model.size_multiple == 128


def test_bfloat16_autocast_stays_close() -> None:
    model = make_autoencoder("regions")
    source, driving = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        exact = model(source, driving).decoded.prediction
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(source, driving).decoded.prediction
    assert math.isfinite(rounded.float().sum().item())
    assert (exact - rounded.float()).abs().mean() < 0.02


@pytest.mark.parametrize("encode_under_autocast", [True, False])
@pytest.mark.parametrize("decode_under_autocast", [True, False])
def test_encode_and_decode_may_differ_in_autocast(encode_under_autocast: bool, decode_under_autocast: bool) -> None:
    model = make_autoencoder("dense")
    image = torch.rand(1, 3, 32, 32)
    motion = Motion(torch.full((1, 2, 2, 16, 16), 0.1), torch.full((1, 1, 2, 16, 16), 0.5))
    with torch.no_grad():
        exact = model.decode(model.encode(image), motion).prediction
        with torch.autocast("cpu", torch.bfloat16, enabled=encode_under_autocast):
            features = model.encode(image)
        with torch.autocast("cpu", torch.bfloat16, enabled=decode_under_autocast):
            decoded = model.decode(features, motion).prediction
    assert decoded.dtype == torch.float32
    assert (exact - decoded).abs().mean() < 0.02
