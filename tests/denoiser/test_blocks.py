"""The convolutional blocks against plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lfdm.denoiser.blocks import NormSiLU, _normalize, _normalize_by_moments


def plain_norm_silu(module: NormSiLU, x: Tensor, modulation: Tensor | None) -> Tensor:
    y = F.group_norm(x.movedim(-1, 1), module.num_groups, module.weight, module.bias, 1e-5).movedim(1, -1)
    if modulation is not None:
        scale, shift = modulation[:, None, None, None].chunk(2, dim=-1)
        y = y * (scale + 1) + shift
    return F.silu(y)


@pytest.mark.parametrize("modulated", [False, True])
def test_norm_silu_and_its_gradients_equal_the_plain_formula(modulated: bool):
    generator = torch.Generator().manual_seed(0)
    module = NormSiLU(12, 4)
    with torch.no_grad():
        module.weight.normal_(generator=generator)
        module.bias.normal_(generator=generator)
    x = (3 + 2 * torch.randn(2, 3, 4, 5, 12, generator=generator)).requires_grad_()
    modulation = torch.randn(2, 24, generator=generator).requires_grad_() if modulated else None
    upstream = torch.randn(x.shape, generator=generator)
    inputs = [x, module.weight, module.bias] + ([modulation] if modulation is not None else [])

    ours = module(x, modulation)
    plain = plain_norm_silu(module, x, modulation)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    our_gradients = torch.autograd.grad(ours, inputs, upstream)
    plain_gradients = torch.autograd.grad(plain, inputs, upstream)
    for our_gradient, plain_gradient in zip(our_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(our_gradient, plain_gradient, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_norm_silu_without_gradients_is_the_same(modulated: bool):
    generator = torch.Generator().manual_seed(0)
    module = NormSiLU(12, 4)
    x = 3 + 2 * torch.randn(3, 2, 4, 5, 12, generator=generator)
    modulation = torch.randn(3, 24, generator=generator) if modulated else None
    with torch.no_grad():
        ours = module(x, modulation)
    torch.testing.assert_close(ours, module(x, modulation).detach(), rtol=1e-5, atol=1e-5)


def test_norm_silu_in_bfloat16_stays_close_to_float32():
    generator = torch.Generator().manual_seed(0)
    module = NormSiLU(16, 4)
    x = torch.randn(2, 4, 8, 8, 16, generator=generator).bfloat16().requires_grad_()
    modulation = 0.5 * torch.randn(2, 32, generator=generator)
    upstream = torch.randn(x.shape, generator=generator)
    low = module(x, modulation.bfloat16())
    high = module(x.float(), modulation)
    assert low.dtype == torch.bfloat16
    assert (low - high).abs().mean() < 0.005
    (low_gradient,) = torch.autograd.grad(low, x, upstream.bfloat16())
    (high_gradient,) = torch.autograd.grad(high, x, upstream)
    assert (low_gradient.float() - high_gradient.float()).abs().mean() < 0.01 * high_gradient.float().std()


def test_both_ways_to_normalize_agree():
    x = 5 + torch.randn(2, 30, 12, generator=torch.Generator().manual_seed(0))
    for ours, moments in zip(_normalize(x, 3), _normalize_by_moments(x, 3), strict=True):
        torch.testing.assert_close(ours, moments, rtol=1e-5, atol=1e-5)
