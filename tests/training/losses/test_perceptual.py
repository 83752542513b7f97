from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lfdm.errors import UserError
from lfdm.training.losses.perceptual import PerceptualLoss

VGG16_FILE = Path(__file__).parents[3] / ".." / "shared" / "weights" / "vgg16_imagenet_features.safetensors"
VGG19_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
VGG19_BLOCKS = (1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5)
VGG16_NAMES = tuple(f"conv{block}_{i}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, count + 1))
WIDTH = 4


def tensors(names: list[str], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for position, name in enumerate(names):
        state[f"{name}.weight"] = torch.randn(WIDTH, WIDTH if position else 3, 3, 3, generator=generator) / 4
        state[f"{name}.bias"] = 0.1 * torch.randn(WIDTH, generator=generator)
    return state


def vgg19_state() -> dict[str, Tensor]:
    return tensors([f"features.{i}" for i in VGG19_POSITIONS]) | {"classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture
def vgg19(tmp_path: Path) -> Path:
    torch.save(vgg19_state(), tmp_path / "vgg19.pth")
    return tmp_path / "vgg19.pth"


@pytest.fixture
def vgg16(tmp_path: Path) -> Path:
    save_file({name: value.half() for name, value in tensors(list(VGG16_NAMES)).items()}, tmp_path / "vgg16.safetensors")
    return tmp_path / "vgg16.safetensors"


def vgg19_layers(image: Tensor) -> list[Tensor]:
    """ReLU 1_1, 2_1, 3_1, 4_1, 5_1 of torchvision's layout, layer by layer."""
    state = vgg19_state()
    x = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    layers = []
    for position, (index, block) in enumerate(zip(VGG19_POSITIONS, VGG19_BLOCKS, strict=True)):
        first_of_block = position == 0 or VGG19_BLOCKS[position - 1] != block
        if first_of_block and position:
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1).relu()
        if first_of_block:
            layers.append(x)
    return layers


def test_vgg19_is_the_published_loss_at_one_scale(vgg19: Path) -> None:
    a, b = torch.rand(2, 2, 3, 32, 32).unbind(0)
    loss = PerceptualLoss(vgg19, num_scales=1)(a, b)
    expected = sum((x - y).abs().mean() for x, y in zip(vgg19_layers(a), vgg19_layers(b), strict=True))
    torch.testing.assert_close(loss, expected)


def test_vgg16_reads_bgr_around_its_means(vgg16: Path) -> None:
    state = {name: value.half().float() for name, value in tensors(list(VGG16_NAMES)).items()}
    image = torch.rand(1, 3, 32, 32)
    x = image[:, [2, 1, 0]] * 255 - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    outputs = {}
    for name in VGG16_NAMES:
        if name.endswith("_1") and name != "conv1_1":
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
        outputs[name] = x
    layers = PerceptualLoss(vgg16, num_scales=1).features(image)
    assert len(layers) == 4
    for layer, name in zip(layers, ("conv1_2", "conv2_2", "conv3_3", "conv4_3"), strict=True):
        torch.testing.assert_close(layer, outputs[name], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("file", ["vgg19", "vgg16"])
def test_equal_images_cost_nothing_and_scales_add_up(file: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(file)
    a, b = torch.rand(2, 1, 3, 32, 32).unbind(0)
    one, two = PerceptualLoss(path, num_scales=1), PerceptualLoss(path, num_scales=2)
    assert two(a, a) == 0
    half = two.downsamples[1]
    torch.testing.assert_close(two(a, b), one(a, b) + one(half(a), half(b)))


def test_only_the_prediction_learns(vgg19: Path) -> None:
    loss = PerceptualLoss(vgg19, num_scales=2)
    prediction, target = torch.rand(1, 3, 32, 32, requires_grad=True), torch.rand(1, 3, 32, 32, requires_grad=True)
    loss(prediction, target).backward()
    assert prediction.grad is not None
    assert prediction.grad.any()
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_small_images_and_other_shapes_are_refused(vgg19: Path) -> None:
    loss = PerceptualLoss(vgg19, num_scales=4)
    with pytest.raises(UserError, match=r"at least 128 pixels per side with perceptual_scales=4; got \(64, 64\)"):
        loss(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    with pytest.raises(UserError, match="must both be"):
        loss(torch.rand(1, 3, 128, 128), torch.rand(2, 3, 128, 128))


def test_the_smallest_allowed_image_works(vgg19: Path) -> None:
    assert PerceptualLoss(vgg19, num_scales=2)(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)).isfinite()


def test_incomplete_and_unknown_networks_are_refused(tmp_path: Path) -> None:
    state = vgg19_state()
    del state["features.16.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth lacks the tensors \['features.16.bias'\]"):
        PerceptualLoss(tmp_path / "part.pth")

    torch.save(vgg19_state() | {"features.5.weight": torch.zeros(4, 5, 3, 3)}, tmp_path / "bent.pth")
    with pytest.raises(UserError, match=r"features\.5 must be \(n, 4, 3, 3\)"):
        PerceptualLoss(tmp_path / "bent.pth")

    save_file({"first.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors must hold.*got \['first\.weight'\]"):
        PerceptualLoss(tmp_path / "other.safetensors")

    for name in ("nowhere.pth", "nowhere.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            PerceptualLoss(tmp_path / name)


def test_a_blur_costs_more_than_brightness() -> None:
    if not VGG16_FILE.is_file():
        pytest.skip(f"no network: {VGG16_FILE} is absent")
    loss = PerceptualLoss(VGG16_FILE, num_scales=1)
    image = F.interpolate(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), 64, mode="nearest")
    blurred = F.avg_pool2d(image, 5, 1, 2, count_include_pad=False)
    brighter = image + (image - blurred).square().mean().sqrt()
    assert loss(blurred, image) > 2 * loss(brighter, image)
