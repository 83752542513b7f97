"""The attentions against plain formulas."""

import math

import pytest
import torch
from torch import Tensor

from lfdm.denoiser import attention as frame_attention
from lfdm.denoiser.attention import (
    RelativePositionBias,
    SpatialLinearAttention,
    TemporalAttention,
    _fused_attention,
    frame_geometry,
)


@pytest.mark.parametrize("block_rows", [1, 7, 10_000])
def test_attention_does_not_depend_on_its_blocks(block_rows: int, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    bias = RelativePositionBias(num_buckets=8, max_distance=8, num_heads=2)
    geometry = frame_geometry(5, bias=bias, head_dim=4)
    spatial, temporal = (kind(6, num_heads=2, head_dim=4) for kind in (SpatialLinearAttention, TemporalAttention))
    x = torch.randn(2, 5, 3, 4, 6, generator=generator, requires_grad=True)
    results = []
    for rows in (640, block_rows):
        monkeypatch.setattr(frame_attention, "BLOCK_ROWS", rows)
        y = temporal(spatial(x), geometry)
        leaves = [x, bias.weight, *spatial.parameters(), *temporal.parameters()]
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_relative_position_buckets_start_where_the_method_says():
    bias = RelativePositionBias(num_buckets=32, max_distance=32, num_heads=1)
    distances = torch.arange(100)
    buckets = bias.buckets(-distances)
    starts = [int((buckets == bucket).nonzero()[0]) for bucket in range(16)]
    assert starts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 23, 27]
    assert int(buckets.max()) == 15
    torch.testing.assert_close(bias.buckets(distances[1:]), buckets[1:] + 16)


def test_temporal_attention_equals_a_loop_over_pixels_and_heads():
    num_heads, head_dim, channels, num_frames = 2, 4, 6, 5
    generator = torch.Generator().manual_seed(0)
    module = TemporalAttention(channels, num_heads=num_heads, head_dim=head_dim)
    bias = RelativePositionBias(num_buckets=8, max_distance=8, num_heads=num_heads)
    x = torch.randn(1, num_frames, 2, 1, channels, generator=generator)
    with torch.no_grad():
        ours = module(x, frame_geometry(num_frames, bias=bias, head_dim=head_dim))
        plain = x.clone()
        table = bias(num_frames)[0]
        for row in range(2):
            pixel = x[0, :, row, 0]  # (t, c)
            centred = pixel - pixel.mean(-1, keepdim=True)
            normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.norm.weight
            q, k, v = (normed @ module.to_qkv.weight.T).chunk(3, dim=-1)
            outputs = []
            for head in range(num_heads):
                part = slice(head * head_dim, (head + 1) * head_dim)
                turned_q, turned_k = (turn_as_complex(z[:, part]) for z in (q, k))
                scores = turned_q @ turned_k.T / math.sqrt(head_dim) + table[head]
                outputs.append(scores.softmax(-1) @ v[:, part])
            plain[0, :, row, 0] += torch.cat(outputs, -1) @ module.to_out.weight.T
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("largest", [1, 3, 7, 100])
def test_fused_attention_of_large_batches_is_that_of_its_parts(largest: int):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 7, 2, 5, 4, generator=generator)
    bias = torch.randn(1, 2, 5, 5, generator=generator)
    scores = q @ k.transpose(-1, -2) / 2 + bias
    torch.testing.assert_close(_fused_attention(q, k, v, bias, largest=largest), scores.softmax(-1) @ v)


def turn_as_complex(x: Tensor) -> Tensor:
    """x: (t, d); channels i and i + d/2 are the two parts of a number turned by t * 10000^(-2i/d)."""
    t, d = x.shape
    angles = torch.arange(t)[:, None] * 10_000 ** (-torch.arange(0, d, 2) / d)
    turned = torch.complex(x[:, : d // 2], x[:, d // 2 :]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)
