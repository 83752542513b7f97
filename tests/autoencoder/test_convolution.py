"""The cheaper forms equal the textbook forms in values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.autoencoder import convolution
from lfdm.autoencoder.convolution import channels_last, convolve_and_norm, convolve_same, convolve_to_few, double_and_convolve
from lfdm.autoencoder.layers import DownBlock, ResBlock, SameBlock, UpBlock


def normed_layers() -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution and a batch norm with random statistics, scale and shift."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    with torch.no_grad():
        for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            assert values is not None
            values.uniform_(0.2, 1.8)
    return conv, norm


def outcome(y: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Return a result and its gradients under a loss that weights every entry differently."""
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), leaves)]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (24, 40)])
def test_upsampling_within_the_convolution(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "MIN_FOLDED_POSITIONS", 1)
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, requires_grad=True)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    leaves = x, *conv.parameters()
    expected = outcome(conv(F.interpolate(x, scale_factor=2, mode="nearest")), *leaves)
    torch.testing.assert_close(outcome(double_and_convolve(x, conv.weight, conv.bias), *leaves), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [3, 7])
def test_convolving_to_few_channels(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 9, 12, requires_grad=True)
    conv = nn.Conv2d(5, 3, size, padding=size // 2)
    leaves = x, *conv.parameters()
    torch.testing.assert_close(outcome(convolve_to_few(x, conv), *leaves), outcome(conv(x), *leaves), atol=1e-4, rtol=1e-4)


def test_the_norm_is_folded_into_the_kernel_in_evaluation_mode_only() -> None:
    conv, norm = normed_layers()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    leaves = x, *conv.parameters(), *norm.parameters()
    norm.eval()
    folded = outcome(convolve_and_norm(x, conv, norm, convolve_same), *leaves)
    torch.testing.assert_close(folded, outcome(norm(conv(x)), *leaves), atol=1e-4, rtol=1e-4)
    norm.train()
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    trained = convolve_and_norm(x, conv, norm, convolve_same)
    assert not torch.equal(norm.running_mean, before)
    torch.testing.assert_close(trained.mean((0, 2, 3)), norm.bias, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [SameBlock(4, 4), DownBlock(4, 4), UpBlock(4, 4), ResBlock(4)])
def test_evaluation_uses_the_current_weights(block: nn.Module) -> None:
    """Folded kernels are not cached: trained, loaded or averaged weights take effect at once."""
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        before = block.eval()(x)
        for values in [*block.parameters(), *block.buffers()]:
            if values.is_floating_point():
                values.mul_(1.3).add_(0.1)
        assert not torch.allclose(block(x), before, atol=1e-3)


def test_channels_last_keeps_values() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(channels_last(x), x)
    assert channels_last(x).stride(1) == 1
