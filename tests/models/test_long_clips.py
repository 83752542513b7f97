"""Positions of frames in clips longer than those of training: relative ones alone, and bounded."""

import torch

from lfdm.models.frame_attention import RelativePositionBias, frame_geometry


def test_distances_beyond_the_largest_share_the_last_bucket_of_their_side() -> None:
    bias = RelativePositionBias(num_buckets=32, max_distance=32, num_heads=2)
    distance = torch.arange(10_000)
    earlier, later = bias.buckets(-distance), bias.buckets(distance)
    assert (earlier.diff() >= 0).all()
    assert (earlier[32:] == 15).all()
    assert (later[32:] == 31).all()
    table = bias(200)[0]
    assert torch.equal(table[:, 60, :28], table[:, 60, :1].expand(-1, 28))
    assert torch.equal(table[:, 100:, 100:], table[:, :100, :100])


def test_rotary_turns_depend_on_the_distance_alone_far_into_a_clip() -> None:
    geometry = frame_geometry(640, bias=RelativePositionBias(num_buckets=8, max_distance=8, num_heads=1), head_dim=32)
    turns = torch.complex(geometry.cosine, geometry.sine)
    far = turns[600:640] * turns[595:635].conj()
    torch.testing.assert_close(far, turns[5].expand(40, -1), atol=2e-4, rtol=0)
