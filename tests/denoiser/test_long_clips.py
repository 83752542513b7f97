"""Positions of frames in clips longer than those of training: only relative ones matter, and they are bounded."""

import torch

from lfdm.denoiser.attention import RelativePositionBias, TemporalAttention, frame_geometry


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


def test_rotary_positions_depend_only_on_the_distance_far_into_a_clip() -> None:
    geometry = frame_geometry(640, bias=RelativePositionBias(num_buckets=8, max_distance=8, num_heads=1), head_dim=32)
    turns = torch.complex(geometry.cosine, geometry.sine)
    far = turns[600:640] * turns[595:635].conj()
    torch.testing.assert_close(far, turns[5].expand(40, -1), atol=2e-4, rtol=0)


def test_each_frame_attends_to_the_given_number_around_it() -> None:
    bias = RelativePositionBias(num_buckets=8, max_distance=8, num_heads=2)
    whole, part = (frame_geometry(20, bias=bias, head_dim=4, attention_frames=count).bias for count in (None, 6))
    attended = part.isfinite()
    assert (attended.sum(dim=-1) == 6).all()
    assert torch.equal(part[attended], whole[attended])
    keys = attended[0, 0].int()
    assert keys[0].argmax() == 0
    assert keys[10].argmax() == 7
    assert keys[19].argmax() == 14
    for enough in (20, 21):
        assert torch.equal(frame_geometry(20, bias=bias, head_dim=4, attention_frames=enough).bias, whole)


@torch.no_grad()
def test_the_middle_of_a_long_clip_does_not_see_its_ends() -> None:
    """With one attention over frames; the first frames see the same as in a clip of the training length."""
    torch.manual_seed(0)
    attention = TemporalAttention(8, num_heads=2, head_dim=4)
    bias = RelativePositionBias(num_buckets=8, max_distance=8, num_heads=2)
    x = torch.randn(1, 20, 2, 2, 8)
    other = torch.cat((x[:, :7].flip(-1), x[:, 7:13], x[:, 13:].flip(-1)), dim=1)

    def attend(frames: torch.Tensor) -> torch.Tensor:
        return attention(frames, frame_geometry(frames.shape[1], bias=bias, head_dim=4, attention_frames=6))

    torch.testing.assert_close(attend(x)[:, 10], attend(other)[:, 10])
    assert not torch.allclose(attend(x)[:, 9], attend(other)[:, 9])
    torch.testing.assert_close(attend(x)[:, :4], attend(x[:, :6])[:, :4])
