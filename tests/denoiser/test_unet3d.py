"""The motion U-Net at tiny size, against a textbook version of the same network."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.errors import UserError

TINY: dict[str, Any] = {
    "latent_channels": 5,
    "condition_dim": 6,
    "dim": 8,
    "channel_multipliers": (1, 2),
    "num_heads": 2,
    "head_dim": 4,
    "num_groups": 4,
}


def tiny_unet(**changes: Any) -> MotionUNet3D:
    torch.manual_seed(0)
    return MotionUNet3D(**{**TINY, **changes}).eval()


def inputs(batch: int = 2, frames: int = 3, size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sample, timestep, condition, latent."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 3, frames, size, size, generator=generator),
        torch.randint(1000, (batch,), generator=generator),
        torch.randn(batch, 6, generator=generator),
        torch.randn(batch, 5, size, size, generator=generator),
    )


# A textbook version: every tensor (b, c, t, h, w), Conv3d with kernels of one frame, einsum attention ----------------


def textbook_unet(
    state: dict[str, Tensor], sample: Tensor, timestep: Tensor, condition: Tensor, latent: Tensor, *, levels: int
) -> Tensor:
    """The network of the published paper with the weights `state`; two blocks per level, 2 heads of 4, 4 groups."""
    frames = sample.shape[2]
    dim = len(state["latent_in.bias"])

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        weight = state[name + ".weight"]
        return frame_conv(x, weight, state.get(name + ".bias"), padding=weight.shape[-1] // 2, **options)

    def linear(name: str, x: Tensor) -> Tensor:
        y = torch.einsum("bcthw,dc->bdthw", x, state[name + ".weight"])
        return y + state[name + ".bias"][:, None, None, None] if name + ".bias" in state else y

    def norm(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 4, state[name + ".weight"], state[name + ".bias"], 1e-5)

    def resnet(name: str, x: Tensor, embedding: Tensor | None) -> Tensor:
        y = norm(name + ".norm1", conv(name + ".conv1", x))
        if embedding is not None:
            modulation = F.silu(embedding) @ state[name + ".modulation.weight"].T + state[name + ".modulation.bias"]
            scale, shift = modulation[:, :, None, None, None].chunk(2, dim=1)
            y = y * (scale + 1) + shift
        y = F.silu(norm(name + ".norm2", conv(name + ".conv2", F.silu(y))))
        return y + (linear(name + ".skip", x) if name + ".skip.weight" in state else x)

    def queries_keys_values(name: str, x: Tensor) -> list[Tensor]:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        normed = (x - mean) / (variance + 1e-5).sqrt() * state[name + ".norm.weight"][:, None, None, None]
        qkv = linear(name + ".to_qkv", normed)
        return list(rearrange(qkv, "b (k n d) t h w -> k b n t (h w) d", k=3, n=2))

    def attend(name: str, x: Tensor, mix: Callable[..., Tensor]) -> Tensor:
        y = rearrange(mix(*queries_keys_values(name, x)), "b n t (h w) d -> b (n d) t h w", h=x.shape[3])
        return x + linear(name + ".to_out", y)

    def linear_in_space(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context = torch.einsum("bntpd,bntpe->bntde", k.softmax(-2), v)
        return torch.einsum("bntde,bntpd->bntpe", context, q.softmax(-1) / 2)

    def full_in_space(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bntpq,bntqd->bntpd", (torch.einsum("bntpd,bntqd->bntpq", q, k) / 2).softmax(-1), v)

    def over_time(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        offsets = torch.arange(frames)[None] - torch.arange(frames)[:, None]
        assert frames <= 8  # one bucket per frame
        bias = state["relative_position_bias.weight"][offsets.abs() + 16 * (offsets > 0)]  # (t, t, n)
        scores = torch.einsum("bntpd,bnspd->bnpts", turn(q), turn(k)) / 2 + bias.permute(2, 0, 1)[None, :, None]
        return torch.einsum("bnpts,bnspd->bntpd", scores.softmax(-1), v)

    def turn(x: Tensor) -> Tensor:
        angles = torch.arange(frames)[:, None] * torch.tensor([1.0, 0.01])  # 10000^(-2i/4)
        cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat((x[..., :2] * cosine - x[..., 2:] * sine, x[..., :2] * sine + x[..., 2:] * cosine), -1)

    def level(name: str, x: Tensor) -> Tensor:
        for block in (0, 1):
            x = resnet(f"{name}.resnets.{block}", x, embedding)
        return attend(f"{name}.temporal_attention", attend(f"{name}.spatial_attention", x, linear_in_space), over_time)

    angles = timestep[:, None] * torch.exp(-math.log(10_000) / (dim // 2 - 1) * torch.arange(dim // 2))
    hidden = F.linear(torch.cat((angles.sin(), angles.cos()), -1), *both(state, "time_embedding.0"))
    embedding = torch.cat((F.linear(F.gelu(hidden), *both(state, "time_embedding.2")), condition), -1)

    repeated = latent[:, :, None].expand(-1, -1, frames, -1, -1)
    weight = torch.cat((state["motion_in.weight"], state["latent_in.weight"]), dim=1)
    stem = frame_conv(torch.cat((sample, repeated), 1), weight, state["latent_in.bias"], padding=3)
    x = attend("temporal_attention_in", stem, over_time)
    skips = []
    for i in range(levels):
        x = level(f"down.{i}", x)
        skips.append(x)
        if i < levels - 1:
            x = frame_conv(x, *both(state, f"down.{i}.resample"), padding=1, stride=2)
    x = attend("middle.spatial_attention", resnet("middle.resnet1", x, embedding), full_in_space)
    x = resnet("middle.resnet2", attend("middle.temporal_attention", x, over_time), embedding)
    for i in range(levels):
        x = level(f"up.{i}", torch.cat((x, skips.pop()), 1))
        if i < levels - 1 and f"up.{i}.resample.conv.weight" in state:
            x = F.pad(x.repeat_interleave(2, 3).repeat_interleave(2, 4), (1, 1, 1, 1, 0, 0), mode="reflect")
            x = frame_conv(x, *both(state, f"up.{i}.resample.conv"), padding=0)
        elif i < levels - 1:
            weight, bias = both(state, f"up.{i}.resample")
            x = F.conv_transpose3d(x, weight[:, :, None], bias, stride=(1, 2, 2), padding=(0, 1, 1))
    x = torch.cat((x, stem), 1)
    return torch.cat([linear(f"heads.{i}.out", resnet(f"heads.{i}.resnet", x, None)) for i in (0, 1)], 1)


def frame_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, stride: int = 1) -> Tensor:
    return F.conv3d(x, weight[:, :, None], bias, stride=(1, stride, stride), padding=(0, padding, padding))


def both(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[name + ".weight"], state[name + ".bias"]


@pytest.mark.parametrize("upsample", ["transpose", "nearest"])
@torch.no_grad()
def test_equals_the_textbook_network(upsample: str):
    unet = tiny_unet(upsample=upsample)
    ours = unet(*inputs(frames=5))
    plain = textbook_unet(unet.state_dict(), *inputs(frames=5), levels=2)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


# Size and shape -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upsample", "null_embedding", "published"), [("transpose", 0, 42_731_203), ("nearest", 768, 42_129_859)]
)
def test_paper_networks_have_the_published_number_of_parameters(upsample: Any, null_embedding: int, published: int):
    with torch.device("meta"):
        unet = MotionUNet3D(upsample=upsample)
    assert sum(parameter.numel() for parameter in unet.parameters()) + null_embedding == published


@pytest.mark.parametrize("frames", [1, 4, 40])
@torch.no_grad()
def test_any_number_of_frames(frames: int):
    sample, timestep, condition, latent = inputs(batch=1, frames=frames)
    out = tiny_unet()(sample, timestep, condition, latent)
    assert out.shape == sample.shape
    assert out.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 2},
        {"patch_size": 2, "separate_heads": False, "num_resnets": 1},
        {"spatial_attention_levels": (False, False), "temporal_attention_levels": (False, True)},
        {"input_kernel": 3, "channel_multipliers": (1, 2, 3)},
        {"patch_size": 4, "channel_multipliers": (2,)},
        {"sample_channels": 4},
    ],
)
def test_configurations_keep_the_shape_and_use_every_parameter(changes: dict[str, Any]):
    unet = tiny_unet(**changes)
    sample, timestep, condition, latent = inputs()
    if "sample_channels" in changes:
        sample = torch.cat((sample, sample[:, :1]), 1)
    out = unet(sample, timestep, condition, latent)
    assert out.shape == sample.shape
    out.square().sum().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
def test_patches_are_squares_of_the_motion():
    unet = tiny_unet(patch_size=2)
    sample, timestep, condition, latent = inputs()
    patches = []
    unet.motion_in.register_forward_pre_hook(lambda _, arguments: patches.append(arguments[0]))
    values = torch.arange(12.0)
    for head, part in zip(unet.heads, (values[:8], values[8:]), strict=True):
        head.get_parameter("out.weight").zero_()
        head.get_parameter("out.bias").copy_(part)
    out = unet(sample, timestep, condition, latent)
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                place = 4 * channel + 2 * row + column
                square = (slice(None), channel, slice(None), slice(row, None, 2), slice(column, None, 2))
                torch.testing.assert_close(patches[0][..., place], sample[square])
                assert (out[square] == values[place]).all()


# Invariances ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch():
    unet = tiny_unet()
    batch = inputs(batch=3)
    together = unet(*batch)
    for i in range(3):
        torch.testing.assert_close(unet(*(x[i : i + 1] for x in batch))[0], together[i], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_timestep_stands_for_all():
    unet = tiny_unet()
    sample, _, condition, latent = inputs()
    each = unet(sample, torch.tensor([637, 637]), condition, latent)
    torch.testing.assert_close(unet(sample, 637, condition, latent), each)
    torch.testing.assert_close(unet(sample, torch.tensor(637.0), condition, latent), each)


@torch.no_grad()
def test_several_conditions_of_a_sample_equal_one_pass_each():
    unet = tiny_unet()
    sample, timestep, condition, latent = inputs()
    conditions = torch.cat((condition, -condition, 2 * condition))
    together = unet(sample, timestep, conditions, latent)
    alone = torch.cat([unet(sample, timestep, one, latent) for one in conditions.chunk(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 2])
@torch.no_grad()
def test_latent_embedding_stands_for_the_latent(patch_size: int):
    unet = tiny_unet(patch_size=patch_size)
    sample, timestep, condition, latent = inputs()
    embedding = unet.embed_latent(latent)
    assert embedding.shape == (2, 8, 8 // patch_size, 8 // patch_size)
    hoisted = unet(sample, timestep, condition, latent_embedding=embedding)
    torch.testing.assert_close(hoisted, unet(sample, timestep, condition, latent))


def test_checkpointing_changes_neither_output_nor_gradients():
    results = []
    for checkpointing in (False, True):
        unet = tiny_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        out = unet(*inputs())
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in unet.parameters())])
        assert unet.gradient_checkpointing == checkpointing
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16_autocast_is_close():
    unet = tiny_unet()
    exact = unet(*inputs())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = unet(*inputs())
    assert (rounded.float() - exact).std() < 0.03 * exact.std()
    exact_gradient, rounded_gradient = (
        torch.autograd.grad(out.float().square().mean(), unet.motion_in.weight)[0] for out in (exact, rounded)
    )
    assert F.cosine_similarity(exact_gradient.flatten(), rounded_gradient.flatten(), dim=0) > 0.99


@torch.no_grad()
def test_a_bfloat16_copy_is_close():
    unet = tiny_unet()
    sample, timestep, condition, latent = inputs()
    exact = unet(sample, timestep, condition, latent)
    rounded = unet.bfloat16()(sample.bfloat16(), timestep, condition.bfloat16(), latent.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).std() < 0.05 * exact.std()


# Files and errors -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_save_and_load_give_the_same_network(tmp_path: Path):
    unet = tiny_unet(patch_size=2, temporal_attention_levels=(False, True), upsample="nearest")
    unet.save_pretrained(tmp_path)
    loaded = MotionUNet3D.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(*inputs()), unet(*inputs()), rtol=0, atol=0)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sample_channels", 2),
        ("latent_channels", 0),
        ("condition_dim", 0),
        ("channel_multipliers", ()),
        ("channel_multipliers", (1, 0)),
        ("dim", 10),
        ("dim", 0),
        ("patch_size", 0),
        ("num_heads", 0),
        ("head_dim", 3),
        ("num_groups", 0),
        ("num_resnets", 0),
        ("input_kernel", 4),
        ("upsample", "bilinear"),
        ("spatial_attention_levels", (True,)),
        ("temporal_attention_levels", (True, True, False)),
        ("relative_position_buckets", 6),
        ("relative_position_max_distance", 8),
    ],
)
def test_a_bad_argument_is_named(argument: str, value: Any):
    with pytest.raises(UserError, match=rf"^{argument} must be"):
        tiny_unet(**{argument: value})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("sample", torch.zeros(2, 4, 3, 8, 8)),
        ("sample", torch.zeros(2, 3, 0, 8, 8)),
        ("sample", torch.zeros(0, 3, 3, 8, 8)),
        ("sample", torch.zeros(2, 3, 8, 8)),
        ("sample", torch.zeros(2, 3, 3, 8, 7)),
        ("timestep", torch.zeros(3)),
        ("condition", torch.zeros(1, 6)),
        ("condition", torch.zeros(2, 7)),
        ("condition", torch.zeros(3, 6)),
        ("condition", torch.zeros(0, 6)),
        ("latent", torch.zeros(2, 4, 8, 8)),
        ("latent", torch.zeros(1, 5, 8, 8)),
        ("latent", torch.zeros(2, 5, 4, 4)),
        ("latent", torch.zeros(2, 5, 9, 8)),
    ],
)
def test_a_bad_shape_is_named(name: str, bad: Tensor):
    arguments = dict(zip(("sample", "timestep", "condition", "latent"), inputs(), strict=True))
    with pytest.raises(UserError, match=rf"^{name}.*allowed"):
        tiny_unet()(**{**arguments, name: bad})


def test_exactly_one_form_of_the_latent_is_taken():
    unet = tiny_unet()
    sample, timestep, condition, latent = inputs()
    with pytest.raises(UserError, match="both"):
        unet(sample, timestep, condition, latent, latent_embedding=unet.embed_latent(latent))
    with pytest.raises(UserError, match="neither"):
        unet(sample, timestep, condition)


@pytest.mark.parametrize("count", [0, -1])
def test_frames_that_attend_to_none_are_refused(count: int):
    with pytest.raises(UserError, match=f"attention_frames must be at least 1, or None for all; got {count}"):
        tiny_unet()(*inputs(), attention_frames=count)
