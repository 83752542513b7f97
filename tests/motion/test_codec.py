import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from lfdm.errors import UserError
from lfdm.motion.codec import MIN_STD, FrameCodec
from lfdm.motion.motion import Motion


def random_motion(batch: int = 2, frames: int = 5, *, corners: bool = False, seed: int = 0) -> Motion:
    generator = torch.Generator().manual_seed(seed)
    flow = 0.1 + 0.3 * torch.randn(batch, 2, frames, 4, 6, generator=generator)
    return Motion(flow, torch.rand(batch, 1, frames, 4, 6, generator=generator), corners)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("kind", ["flow", "grid"])
def test_decoding_inverts_encoding(kind: Literal["flow", "grid"], corners: bool) -> None:
    motion = random_motion(corners=corners)
    for codec in (
        FrameCodec(kind=kind, corners=corners, still_first_frame=False),
        FrameCodec(kind=kind, corners=corners, still_first_frame=False).measured([motion]),
    ):
        decoded = codec.decode(codec.encode(motion), 5)
        torch.testing.assert_close(decoded.flow, motion.flow, rtol=0, atol=1e-5)
        torch.testing.assert_close(decoded.occlusion, motion.occlusion, rtol=0, atol=1e-5)
        assert decoded.corners == corners


def test_statistics_do_not_depend_on_how_the_motions_are_split() -> None:
    motion = random_motion(batch=6)
    codec = FrameCodec().measured([motion])
    sample = codec.encode(motion)
    torch.testing.assert_close(sample.mean((0, 2, 3, 4)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(sample.std((0, 2, 3, 4)), torch.ones(3), rtol=0, atol=5e-3)
    parts = [Motion(flow, occlusion) for flow, occlusion in zip(motion.flow.split(2), motion.occlusion.split(2), strict=True)]
    split = FrameCodec().measured(parts)
    assert split.mean == pytest.approx(codec.mean)
    assert split.std == pytest.approx(codec.std)
    assert (split.low, split.high) == (codec.low, codec.high)


def test_a_constant_channel_is_not_amplified() -> None:
    codec = FrameCodec().measured([Motion.identity(1, 3, (4, 4), corners=False)])
    assert codec.std == (MIN_STD, MIN_STD, MIN_STD)
    assert torch.isfinite(codec.encode(random_motion())).all()


def test_a_still_first_frame_is_exactly_no_motion() -> None:
    codec = FrameCodec().measured([random_motion()])
    decoded = codec.decode(torch.randn(2, 3, 4, 4, 6), 4)
    assert torch.equal(decoded.flow[:, :, 0], torch.zeros(2, 2, 4, 6))
    assert torch.equal(decoded.occlusion[:, :, 0], torch.ones(2, 1, 4, 6))
    assert decoded.flow[:, :, 1:].abs().min() > 0


def test_clamping_keeps_to_the_measured_range_and_changes_nothing_inside() -> None:
    motion = random_motion()
    codec = FrameCodec(still_first_frame=False).measured([motion])
    sample = codec.encode(motion)
    torch.testing.assert_close(codec.clamp(sample), sample, rtol=0, atol=1e-6)
    wild = codec.decode(codec.clamp(100 * torch.randn(2, 3, 4, 4, 6)), 4)
    assert wild.flow.amax() <= motion.flow.amax() + 1e-5
    assert wild.flow.amin() >= motion.flow.amin() - 1e-5
    unclamped = FrameCodec().measured([motion], clamp=False)
    assert unclamped.clamp(100 * sample).equal(100 * sample)


def test_occlusion_is_clamped_to_its_range() -> None:
    occlusion = FrameCodec(still_first_frame=False).decode(3 * torch.randn(1, 3, 2, 4, 4), 2).occlusion
    assert occlusion.amin() == 0
    assert occlusion.amax() == 1


def test_save_and_load(tmp_path: Path) -> None:
    codec = FrameCodec().measured([random_motion()])
    codec.save_pretrained(tmp_path / "codec")
    loaded = FrameCodec.from_pretrained(tmp_path / "codec")
    assert (loaded.mean, loaded.std, loaded.low, loaded.high) == (codec.mean, codec.std, codec.low, codec.high)
    sample = torch.randn(1, 3, 2, 4, 6)
    assert torch.equal(loaded.decode(sample, 2).flow, codec.decode(sample, 2).flow)


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    FrameCodec().save_pretrained(tmp_path / "codec")
    path = tmp_path / "codec" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "means": [0, 0, 0]}))
    with pytest.raises(UserError, match="unknown keys \\['means'\\]"):
        FrameCodec.from_pretrained(tmp_path / "codec")


def test_a_motion_of_the_other_convention_is_refused() -> None:
    with pytest.raises(UserError, match="corners=False, as this codec; got corners=True"):
        FrameCodec(corners=False).encode(random_motion(corners=True))


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match="kind must be"):
        FrameCodec(kind="flows")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="in pairs; got"):
        FrameCodec(mean=(0, 0, 0))
    with pytest.raises(UserError, match="std must be positive"):
        FrameCodec(mean=(0, 0, 0), std=(1, 0, 1))
    with pytest.raises(UserError, match="low must not exceed high"):
        FrameCodec(low=(0, 0, 2), high=(1, 1, 1))
    with pytest.raises(UserError, match="mean must be"):
        FrameCodec(mean=(0, float("nan"), 0), std=(1, 1, 1))


def test_motions_that_cannot_be_measured() -> None:
    with pytest.raises(UserError, match="motions is empty"):
        FrameCodec().measured([])
    with pytest.raises(UserError, match="motions must be finite"):
        FrameCodec().measured([Motion(torch.full((1, 2, 1, 2, 2), torch.nan), torch.ones(1, 1, 1, 2, 2))])
