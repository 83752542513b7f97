"""Derivatives beyond those of an ordinary training step: forward mode and second order, as few-step training needs them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp

from lfdm.denoiser.attention import RelativePositionBias as Bias
from lfdm.denoiser.attention import SpatialAttention, SpatialLinearAttention, TemporalAttention, _Rotate, frame_geometry
from lfdm.denoiser.blocks import NormSiLU, _NormAffineSiLU
from lfdm.denoiser.unet3d import MotionUNet3D

STEP = 1e-5
"""Step of finite differences, in float64."""


@pytest.fixture
def unet() -> MotionUNet3D:
    torch.manual_seed(0)
    model = MotionUNet3D(
        latent_channels=5, condition_dim=6, dim=8, channel_multipliers=(1, 2), num_heads=2, head_dim=4, num_groups=2
    )
    return model.double()


def doubles(*shape: int, requires_grad: bool = True) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)


def norm(x: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    return _NormAffineSiLU.apply(x, gain, offset, 2)


@pytest.mark.parametrize("clips", [1, 2])  # of gain and offset: shared or modulated
def test_norm_silu_has_first_and_second_derivatives(clips: int) -> None:
    torch.manual_seed(0)
    inputs = (doubles(2, 6, 4), doubles(clips, 1, 4), doubles(clips, 1, 4))
    assert gradcheck(norm, inputs)
    assert gradgradcheck(norm, inputs)


def test_rotation_has_first_and_second_derivatives() -> None:
    torch.manual_seed(0)
    cosine, sine = doubles(3, 2, requires_grad=False), doubles(3, 2, requires_grad=False)
    inputs = (doubles(2, 3, 4),)
    assert gradcheck(lambda x: _Rotate.apply(x, cosine, sine), inputs)
    assert gradgradcheck(lambda x: _Rotate.apply(x, cosine, sine), inputs)


def blocks() -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of x (1, 2, 2, 1, 4)."""
    spatial = SpatialAttention(4, num_heads=2, head_dim=2).double()
    linear = SpatialLinearAttention(4, num_heads=2, head_dim=2).double()
    temporal = TemporalAttention(4, num_heads=2, head_dim=2).double()
    geometry = frame_geometry(2, bias=Bias(num_buckets=8, max_distance=8, num_heads=2), head_dim=2)
    norm_silu = NormSiLU(4, 2).double()
    return {"spatial": spatial, "linear": linear, "temporal": lambda x: temporal(x, geometry), "norm": norm_silu}


@pytest.mark.parametrize("name", ["spatial", "linear", "temporal", "norm"])
def test_blocks_have_forward_and_second_derivatives(name: str) -> None:
    torch.manual_seed(0)
    block, x = blocks()[name], (doubles(1, 2, 2, 1, 4),)
    assert gradcheck(block, x, check_forward_ad=True)
    assert gradgradcheck(block, x, check_fwd_over_rev=True)


def test_directional_derivatives_of_the_network_equal_finite_differences(unet: MotionUNet3D) -> None:
    sample, direction = doubles(2, 3, 3, 8, 8, requires_grad=False), doubles(2, 3, 3, 8, 8, requires_grad=False)
    time, rate = torch.tensor([100.0, 700.0]).double(), torch.tensor([3.0, -2.0]).double()
    condition, latent = doubles(2, 6, requires_grad=False), doubles(2, 5, 8, 8, requires_grad=False)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return unet(x, t, condition, latent)

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            value, tangent = jvp(predict, (sample, time), (direction, rate))[:2]
            ahead, behind = (predict(sample + h * direction, time + h * rate) for h in (STEP, -STEP))
        torch.testing.assert_close(value, predict(sample, time))
        torch.testing.assert_close(tangent, (ahead - behind) / (2 * STEP), rtol=1e-6, atol=1e-6)


def test_a_loss_of_a_directional_derivative_reaches_every_weight(unet: MotionUNet3D) -> None:
    """As in MeanFlow (2505.13447); also with gradient checkpointing."""
    sample, direction = doubles(1, 3, 3, 8, 8, requires_grad=False), doubles(1, 3, 3, 8, 8, requires_grad=False)
    inputs = (torch.tensor([300.0]).double(), doubles(1, 6, requires_grad=False), doubles(1, 5, 8, 8, requires_grad=False))

    def gradients() -> list[Tensor]:
        unet.zero_grad()
        value, tangent = jvp(lambda x: unet(x, *inputs), (sample,), (direction,))[:2]
        (value.square().mean() + tangent.square().mean()).backward()
        return [parameter.grad.clone() for parameter in unet.parameters() if parameter.grad is not None]

    plain = gradients()
    assert len(plain) == len(list(unet.parameters()))
    unet.train().enable_gradient_checkpointing()
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_a_gradient_equals_finite_differences(unet: MotionUNet3D) -> None:
    inputs = (torch.tensor([300.0]).double(), doubles(1, 6, requires_grad=False), doubles(1, 5, 8, 8, requires_grad=False))
    sample, direction = doubles(1, 3, 3, 8, 8), doubles(1, 3, 3, 8, 8, requires_grad=False)

    def penalty(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(unet(x, *inputs).square().sum(), x, create_graph=True)
        return gradient.square().sum()

    (second,) = torch.autograd.grad(penalty(sample), sample)
    ahead, behind = (penalty((sample + h * direction).detach().requires_grad_()) for h in (STEP, -STEP))
    torch.testing.assert_close((second * direction).sum(), (ahead - behind) / (2 * STEP), rtol=1e-6, atol=1e-6)


def test_functional_gradients_equal_ordinary_ones(unet: MotionUNet3D) -> None:
    inputs = (doubles(1, 3, 3, 8, 8, requires_grad=False), 300, doubles(1, 6, requires_grad=False))
    latent = doubles(1, 5, 8, 8, requires_grad=False)
    parameters = {name: parameter.detach() for name, parameter in unet.named_parameters()}
    functional = grad(lambda weights: functional_call(unet, weights, (*inputs, latent)).square().mean())(parameters)
    unet(*inputs, latent).square().mean().backward()
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(functional[name], parameter.grad)
