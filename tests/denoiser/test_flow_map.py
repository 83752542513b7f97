"""The inputs of distilled networks: the end of a time interval, and the guidance scale."""

from pathlib import Path

import pytest
import torch

from lfdm.config.models import UNetConfig
from lfdm.denoiser.undistilled import without_distilled_inputs
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError
from tests.denoiser.test_unet3d import inputs, tiny_unet


def distilled(teacher: MotionUNet3D, *, max_guidance: float | None = 4.0) -> MotionUNet3D:
    network = tiny_unet(flow_map=True, max_guidance=max_guidance)
    network.load_state_dict({**network.state_dict(), **teacher.state_dict()})
    return network


@torch.no_grad()
def test_it_starts_as_the_network_that_it_is_made_of_bit_for_bit() -> None:
    teacher, (sample, timestep, condition, latent) = tiny_unet(), inputs()
    network, expected = distilled(teacher), teacher(sample, timestep, condition, latent)
    for scale in (None, 1.0, 3.0, torch.tensor([1.0, 4.0])):
        found = network(sample, timestep, condition, latent, until=timestep, guidance=scale)
        assert torch.equal(found, expected)
    assert torch.equal(network(sample, timestep, condition, latent), expected)


@torch.no_grad()
def test_only_the_way_up_sees_the_end_of_the_interval() -> None:
    network, (sample, timestep, condition, latent) = distilled(tiny_unet()), inputs()
    seen = {}
    for name, module in {"down": network.down[0], "middle": network.middle, "up": network.up[-1]}.items():
        module.register_forward_pre_hook(lambda _, values, name=name: seen.setdefault(name, []).append(values[1]))
    outputs = [network(sample, timestep, condition, latent, until=until) for until in (timestep / 2, timestep)]
    assert not torch.allclose(*outputs)
    assert torch.equal(*seen["down"])
    assert torch.equal(*seen["middle"])
    assert not torch.equal(*seen["up"])


@torch.no_grad()
def test_each_sample_has_its_own_guidance_scale_under_all_its_conditions() -> None:
    network, (sample, timestep, condition, latent) = distilled(tiny_unet()), inputs()
    assert network.guidance_embedding is not None
    torch.nn.init.normal_(network.guidance_embedding.weight)
    both = torch.cat((condition, -condition))
    together = network(sample, timestep, both, latent, guidance=torch.tensor([1.5, 3.0]))
    for row, scale in enumerate((1.5, 3.0)):
        one = slice(row, row + 1)
        apart = network(sample[one], timestep[one], both[row::2], latent[one], guidance=scale)
        torch.testing.assert_close(together[row::2], apart, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, network(sample, timestep, both, latent))


def test_a_network_without_these_inputs_has_no_new_weights_and_refuses_them(tmp_path: Path) -> None:
    plain, (sample, timestep, condition, latent) = tiny_unet(), inputs()
    assert distilled(plain).state_dict().keys() - plain.state_dict().keys() == {
        "guidance_embedding.weight",
        "guidance_embedding.bias",
    }
    assert distilled(plain, max_guidance=None).state_dict().keys() == plain.state_dict().keys()
    for name in ("until", "guidance"):
        with pytest.raises(UserError, match=name):
            plain(sample, timestep, condition, latent, **{name: 1.0})
    distilled(plain).save_pretrained(tmp_path)
    loaded = MotionUNet3D.from_pretrained(tmp_path)
    assert loaded.flow_map
    assert loaded.max_guidance == 4


@torch.no_grad()
@pytest.mark.parametrize("max_guidance", [4.0, None])
def test_without_the_inputs_it_makes_the_same_prediction_at_an_instant_and_scale_1(max_guidance: float | None) -> None:
    network, (sample, timestep, condition, latent) = distilled(tiny_unet(), max_guidance=max_guidance), inputs()
    if network.guidance_embedding is not None:
        torch.nn.init.normal_(network.guidance_embedding.weight)
        torch.nn.init.normal_(network.guidance_embedding.bias)
    plain = without_distilled_inputs(network)
    assert plain.state_dict().keys() == tiny_unet().state_dict().keys()
    found, expected = (one(sample, timestep, condition, latent) for one in (plain, network))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="guidance"):
        plain(sample, timestep, condition, latent, guidance=2.0)


@pytest.mark.parametrize("value", [1.0, 0.5])
def test_a_largest_guidance_scale_that_is_not_allowed_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="max_guidance"):
        UNetConfig(max_guidance=value)
