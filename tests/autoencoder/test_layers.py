import pytest
import torch
import torch.nn.functional as F

from lfdm.autoencoder.layers import (
    AntiAliasDownsample,
    ConvBlock,
    DownBlock,
    Hourglass,
    ImageEncoder,
    ResBlock,
    SameBlock,
    UpBlock,
)


@pytest.mark.parametrize(("in_channels", "channels", "expected"), [(3, 32, 35), (44, 64, 108)])
def test_hourglass_appends_its_input(in_channels: int, channels: int, expected: int) -> None:
    hourglass = Hourglass(in_channels, channels=channels, depth=2, max_channels=1024)
    x = torch.rand(1, in_channels, 4, 4)
    assert hourglass.out_channels == expected
    assert hourglass(x).shape == (1, expected, 4, 4)
    assert torch.equal(hourglass(x)[:, channels:], x)


def test_hourglass_has_the_published_widths() -> None:
    hourglass = Hourglass(44, channels=64, depth=5, max_channels=1024)
    downs = [tuple(block.conv.weight.shape[:2]) for block in hourglass.encoder.blocks if isinstance(block, DownBlock)]
    ups = [tuple(block.conv.weight.shape[:2]) for block in hourglass.ups if isinstance(block, UpBlock)]
    assert downs == [(128, 44), (256, 128), (512, 256), (1024, 512), (1024, 1024)]
    assert ups == [(1024, 1024), (512, 2048), (256, 1024), (128, 512), (64, 256)]


def test_encoder_returns_every_resolution() -> None:
    shapes = [tuple(x.shape) for x in ImageEncoder(3, channels=4, depth=3, max_channels=16)(torch.rand(2, 3, 8, 16))]
    assert shapes == [(2, 3, 8, 16), (2, 8, 4, 8), (2, 16, 2, 4), (2, 16, 1, 2)]


@pytest.mark.parametrize(("factor", "size"), [(2, 5), (4, 13), (8, 29)])
def test_anti_alias_kernel(factor: int, size: int) -> None:
    kernel = AntiAliasDownsample(3, factor).kernel
    assert kernel.shape == (3, 1, size, size)
    torch.testing.assert_close(kernel.sum((-2, -1)), torch.ones(3, 1))
    centre = size // 2
    sigma = (factor - 1) / 2
    ratio = kernel[0, 0, centre, centre + 1] / kernel[0, 0, centre, centre]
    torch.testing.assert_close(ratio, torch.tensor(-1 / (2 * sigma**2)).exp())


def test_anti_alias_samples_every_dth_blurred_pixel_from_the_first() -> None:
    downsample = AntiAliasDownsample(2, 4)
    x = torch.rand(1, 2, 16, 20)
    blurred = F.conv2d(F.pad(x, (6, 6, 6, 6)), downsample.kernel, groups=2)
    torch.testing.assert_close(downsample(x), blurred[:, :, ::4, ::4])


def test_anti_alias_by_one_is_the_image_itself() -> None:
    x = torch.rand(1, 3, 5, 5)
    assert AntiAliasDownsample(3, 1)(x) is x


def test_anti_alias_adds_nothing_to_a_checkpoint() -> None:
    assert not AntiAliasDownsample(3, 4).state_dict()


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (SameBlock(3, 8), (2, 8, 6, 8)),
        (DownBlock(3, 8), (2, 8, 3, 4)),
        (UpBlock(3, 8), (2, 8, 12, 16)),
        (ResBlock(3), (2, 3, 6, 8)),
        (ConvBlock(3, 8), (2, 8, 6, 8)),
        (ConvBlock(3, 8, stride=2), (2, 8, 3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else str(value),
)
def test_block_shapes(block: torch.nn.Module, shape: tuple[int, ...]) -> None:
    assert block(torch.rand(2, 3, 6, 8)).shape == shape


def test_residual_block_without_its_last_convolution_is_the_identity() -> None:
    block = ResBlock(4)
    block.conv2.load_state_dict({"weight": torch.zeros_like(block.conv2.weight), "bias": torch.zeros(4)})
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(block(x), x)
