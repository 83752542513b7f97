from typing import Any

import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.autoencoder.growth import grown_weights
from lfdm.errors import UserError
from lfdm.folders.model_folder import load_exactly
from lfdm.motion.motion import Motion


def make(num_downs: int, **changes: Any) -> LatentFlowAutoencoder:
    torch.manual_seed(num_downs)
    settings: dict[str, Any] = {
        "channels": 8,
        "max_channels": 16,
        "num_res_blocks": 1,
        "corners": False,
        "padding_mode": "border",
    }
    predictor = {"type": "dense", "channels": (8, 8, 16, 16), "match_channels": 8}
    return LatentFlowAutoencoder(**(settings | {"num_downs": num_downs, "predictor": predictor} | changes)).eval()


def randomise(model: LatentFlowAutoencoder) -> LatentFlowAutoencoder:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def test_the_motion_of_a_grown_model_is_that_of_the_small_one_on_reduced_images() -> None:
    small, large = randomise(make(1)), make(3, upsampling="convex")
    load_exactly(large, grown_weights(large, small), "small")
    source, driving = torch.rand(1, 3, 128, 64), torch.rand(1, 3, 128, 64)
    reduced = (torch.nn.functional.avg_pool2d(x, 4) for x in (source, driving))
    expected = small.estimate_motion(*reduced)
    motion = large.estimate_motion(source, driving)
    torch.testing.assert_close(motion.flow, expected.flow, atol=1e-5, rtol=0)
    torch.testing.assert_close(motion.occlusion, expected.occlusion, atol=1e-5, rtol=0)


@torch.no_grad()
def test_new_levels_average_and_repeat() -> None:
    small, large = randomise(make(1)), make(2)
    load_exactly(large, grown_weights(large, small), "small")
    image = torch.rand(1, 3, 32, 32)
    half, quarter = large.encode(image).scales[1:]
    torch.testing.assert_close(half, small.encode(image).latent)
    torch.testing.assert_close(quarter, torch.nn.functional.avg_pool2d(half, 2), atol=1e-4, rtol=0)
    x = torch.rand(1, 16, 8, 8)
    torch.testing.assert_close(large.ups[0](x), torch.nn.functional.interpolate(x, scale_factor=2), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_same_size_continues_exactly() -> None:
    start, model = randomise(make(2, upsampling="convex")), make(2, upsampling="convex")
    load_exactly(model, grown_weights(model, start), "start")
    image = torch.rand(1, 3, 32, 32)
    motion = Motion(0.1 * torch.randn(1, 2, 1, 8, 8), torch.rand(1, 1, 1, 8, 8))
    expected = start.decode(start.encode(image), motion).prediction
    assert torch.equal(model.decode(model.encode(image), motion).prediction, expected)


@pytest.mark.parametrize(
    ("large", "small"), [({"num_downs": 1}, {"num_downs": 2}), ({"num_downs": 2, "channels": 16}, {"num_downs": 1})]
)
def test_models_that_do_not_continue_each_other_are_refused(large: dict[str, int], small: dict[str, int]) -> None:
    module = make(**large)
    with pytest.raises(UserError, match="does not match"):
        load_exactly(module, grown_weights(module, make(**small)), "small")
