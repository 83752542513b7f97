from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lfdm.errors import UserError
from lfdm.evaluation.networks.i3d import I3D, pad_same


@pytest.fixture(scope="module")
def network() -> I3D:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return I3D().eval()


def test_has_the_parameters_and_names_of_the_state_dicts_in_circulation(network: I3D) -> None:
    state = network.state_dict()
    units = {name.removesuffix(".conv3d.weight") for name in state if name.endswith(".conv3d.weight")}
    mixed = [f"Mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]
    branches = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
    plain = {"Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"}
    assert units == plain | {f"{block}.{branch}" for block in mixed for branch in branches} | {"logits"}
    norms = [f"{unit}.bn.{part}" for unit in units - {"logits"} for part in ("weight", "bias", "running_mean", "running_var")]
    counts = [f"{unit}.bn.num_batches_tracked" for unit in units - {"logits"}]
    assert set(state) == {f"{unit}.conv3d.weight" for unit in units} | {"logits.conv3d.bias"} | set(norms) | set(counts)
    assert state["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1)
    # Inception-v1: kernels x inputs x outputs of every convolution, two numbers per normalised channel, 400 biases
    expected = 7**3 * 3 * 64 + 64 * 64 + 27 * 64 * 192 + 1024 * 400 + 400 + 2 * (64 + 64 + 192)
    channels = 192
    for widths in (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    ):
        b0, b1a, b1b, b2a, b2b, b3b = widths
        expected += channels * (b0 + b1a + b2a + b3b) + 27 * (b1a * b1b + b2a * b2b) + 2 * sum(widths)
        channels = b0 + b1b + b2b + b3b
    assert sum(p.numel() for p in network.parameters()) == expected == 12_697_264


@pytest.mark.parametrize("size", [5, 8, 9, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (2, 2), (3, 1), (1, 1)])
def test_padding_is_tensorflows_same(size: int, kernel: int, stride: int) -> None:
    x = torch.arange(1.0, size + 1).view(1, 1, size, 1, 1)
    ours = pad_same(x, (kernel, 1, 1), (stride, 1, 1)).flatten()
    outputs = -(-size // stride)
    front = max((outputs - 1) * stride + kernel - size, 0) // 2  # the odd zero goes behind
    for i in range(outputs):
        window = [ours[i * stride + k].item() for k in range(kernel)]
        assert window == [n + 1 if 0 <= (n := i * stride - front + k) < size else 0 for k in range(kernel)]
    assert (len(ours) - kernel) // stride + 1 == outputs


def test_first_convolution_against_the_sum_written_out() -> None:
    """16 frames of 20x20: 5 zeros in all along each side, two of them in front."""
    torch.manual_seed(0)
    network = I3D().eval()
    convolution, norm = network.get_submodule("Conv3d_1a_7x7.conv3d"), network.get_submodule("Conv3d_1a_7x7.bn")
    assert isinstance(convolution, nn.Conv3d)
    assert isinstance(norm, nn.BatchNorm3d)
    mean, variance = torch.randn(64), torch.rand(64) + 0.5
    norm.load_state_dict({"running_mean": mean, "running_var": variance}, strict=False)
    x = torch.rand(1, 3, 16, 20, 20)
    with torch.no_grad():
        ours = network[0](x)
        assert ours.shape == (1, 64, 8, 10, 10)
        for t, i, j in ((0, 0, 0), (7, 9, 9), (3, 0, 5), (4, 5, 9)):
            total = torch.zeros(64)
            for a, b, c in product(range(7), repeat=3):
                f, y, z = 2 * t + a - 2, 2 * i + b - 2, 2 * j + c - 2
                if f in range(16) and y in range(20) and z in range(20):
                    total += convolution.weight[:, :, a, b, c] @ x[0, :, f, y, z]
            expected = (total - mean) / (variance + 1e-5).sqrt()
            torch.testing.assert_close(ours[0, :, t, i, j], expected.relu(), rtol=1e-4, atol=1e-5)


def test_mixed_block_is_its_four_branches_side_by_side(network: I3D) -> None:
    block = network.get_submodule("Mixed_5c")
    x = torch.rand(1, 832, 2, 3, 3)
    with torch.no_grad():
        ours = block(x)
        pooled = F.max_pool3d(x, 3, stride=1, padding=1)  # pads with -inf: the same for inputs that are not negative
        ends = [block.get_submodule(name) for name in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
        b0, b1a, b1b, b2a, b2b, b3b = ends
        torch.testing.assert_close(ours, torch.cat((b0(x), b1b(b1a(x)), b2b(b2a(x)), b3b(pooled)), dim=1))
    assert ours.shape == (1, 384 + 384 + 128 + 128, 2, 3, 3)


def test_features_are_logits_averaged_over_time(network: I3D) -> None:
    video = torch.rand(1, 3, 17, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    seen = {}
    hook = network.get_submodule("Mixed_5c").register_forward_hook(lambda _module, _args, output: seen.update(end=output))
    with torch.no_grad():
        logits = network(video)
    hook.remove()
    end = seen["end"]
    assert end.shape == (1, 1024, 3, 7, 7)  # 17 -> 9 -> 5 -> 3
    pooled = torch.stack([end[:, :, i : i + 2].mean(dim=(2, 3, 4)) for i in (0, 1)], dim=1)  # (1, 2, 1024)
    head = network.get_submodule("logits.conv3d")
    assert isinstance(head, nn.Conv3d)
    assert head.bias is not None
    expected = pooled.mean(dim=1) @ head.weight.flatten(1).T + head.bias
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert logits.shape == (1, 400)


@pytest.mark.parametrize("shape", [(1, 3, 8, 224, 224), (1, 3, 16, 112, 224), (1, 1, 16, 224, 224), (3, 16, 224, 224)])
def test_refuses_other_shapes(network: I3D, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"video must be \(b, 3, t >= 9, 224, 224\); got"):
        network(torch.zeros(shape))
