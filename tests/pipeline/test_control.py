"""Steering what a pipeline makes: strength, masks, mixes, what to avoid, length, loops, streamed and saved motion."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lfdm.config.presets import Preset
from lfdm.diffusion.windows import plan_windows
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.pipeline.inputs import parse_condition, prepare_mask
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.result import LatentFlowOutput

LABELS = ("jump", "raise arms", "wave")
SIZE = 32


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    pipe = LatentFlowPipeline.from_preset(tiny_preset, LABELS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def frames_of(pipe: LatentFlowPipeline, image: Any, condition: Any = "wave", **options: Any) -> np.ndarray:
    return array(pipe(image, condition, output_type="uint8", **{"num_inference_steps": 2, "generator": 0, **options}))


def array(output: LatentFlowOutput) -> np.ndarray:
    assert isinstance(output.frames, np.ndarray)
    return output.frames


def motion_of(pipe: LatentFlowPipeline, image: Any, condition: Any = "wave", **options: Any) -> Motion:
    return pipe(image, condition, output_type="pt", **{"num_inference_steps": 2, "generator": 0, **options}).motion


# -------------------------------------------------------------------------------------------------- strength and masks


def test_strength_in_a_call(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    free = frames_of(pipe, image)
    assert np.array_equal(frames_of(pipe, image, motion_strength=1), free)
    assert np.array_equal(frames_of(pipe, image, motion_strength=0), np.broadcast_to(image, free.shape))
    still = motion_of(pipe, image, motion_strength=0)
    assert not still.flow.any()
    assert (still.occlusion == 1).all()
    half = motion_of(pipe, image, motion_strength=0.5)
    torch.testing.assert_close(half.flow, motion_of(pipe, image).flow / 2)
    for wrong in (-0.1, 2.1, float("nan"), "1"):
        with pytest.raises(UserError, match=r"motion_strength must be a finite number, 0 to 2"):
            frames_of(pipe, image, motion_strength=wrong)


def test_a_mask_in_a_call(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, : SIZE // 2] = 255
    free, masked = frames_of(pipe, image), frames_of(pipe, image, motion_mask=mask)
    assert np.array_equal(masked[..., SIZE // 2 :, :], np.broadcast_to(image[:, SIZE // 2 :], (1, 4, SIZE, SIZE // 2, 3)))
    assert (masked[0, 1:, :, :6] != image[:, :6]).any()
    assert np.array_equal(frames_of(pipe, image, motion_mask=np.ones((SIZE, SIZE))), free)
    assert np.array_equal(frames_of(pipe, image, motion_mask=np.zeros((SIZE, SIZE))), np.broadcast_to(image, free.shape))


def test_animate_and_transfer_take_strength_and_mask(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    motion = motion_of(pipe, image)
    mask = torch.zeros(SIZE, SIZE)
    mask[:, : SIZE // 2] = 1
    steering: dict[str, Any] = {"motion_strength": 0.7, "motion_mask": mask}
    assert np.array_equal(array(pipe.animate(image, motion, output_type="uint8", **steering)), frames_of(pipe, image, **steering))
    driving = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    steered = pipe.transfer(image, driving, **steering).motion
    plain = pipe.transfer(image, driving).motion.scaled(0.7).masked(mask[None, None])
    assert torch.equal(steered.flow, plain.flow)
    assert torch.equal(steered.occlusion, plain.occlusion)
    several = array(pipe.animate([image, 255 - image], motion, output_type="uint8"))
    assert np.array_equal(several[:1], array(pipe.animate(image, motion, output_type="uint8")))


def test_every_kind_of_mask_is_the_same_mask(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    brushed = Image.fromarray(np.dstack((white, mask)), "RGBA")  # white paint on a transparent layer
    kinds: list[Any] = [
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
        Image.fromarray(mask),
        Image.fromarray(mask).convert("RGB"),
        brushed,
        mask,
        mask[..., None],
        mask / 255,
        torch.from_numpy(mask),
        torch.from_numpy(mask)[None] / 255,
    ]
    exact = torch.from_numpy(mask).float()[None, None] / 255
    for kind in kinds:
        assert torch.equal(prepare_mask(kind, size=SIZE, fit="pad"), exact), type(kind)
    assert torch.equal(prepare_mask(mask > 100, size=SIZE, fit="pad"), (exact > 100 / 255).float())
    halves = np.repeat([[0.0, 1.0]], 10, axis=0).repeat(10, axis=1)
    wide = prepare_mask(halves, size=SIZE, fit="pad")[0, 0]
    assert torch.equal(wide, wide[SIZE // 2].expand(SIZE, SIZE))  # padded as its edge
    assert (wide[0, 0], wide[0, -1]) == (0, 1)


def test_a_white_mask_changes_nothing_for_an_image_of_any_shape(pipe: LatentFlowPipeline) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIZE // 2, SIZE, 3), dtype=np.uint8)
    masked = frames_of(pipe, picture, motion_mask=np.ones(picture.shape[:2]))
    assert np.array_equal(masked, frames_of(pipe, picture))


@pytest.mark.parametrize("shape", [(SIZE, SIZE // 2), (SIZE // 2, SIZE // 2), (SIZE, SIZE)])
def test_a_mask_of_another_size_than_its_image_is_refused(pipe: LatentFlowPipeline, shape: tuple[int, int]) -> None:
    picture, motion = np.zeros((SIZE // 2, SIZE, 3), np.uint8), Motion.identity(1, 2, (SIZE // 2, SIZE // 2), corners=False)
    for call in (pipe, lambda image, **options: pipe.animate(image, motion, **options)):
        with pytest.raises(UserError, match=rf"motion_mask .*{SIZE}x{SIZE // 2}; got {shape[1]}x{shape[0]}"):
            call([picture, picture], motion_mask=np.ones(shape))
    with pytest.raises(UserError, match=rf"motion_mask .*{SIZE}x{SIZE // 2}; got {shape[1]}x{shape[0]}"):
        pipe.transfer(picture, picture[None], motion_mask=np.ones(shape))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((8, 8), np.nan), "must lie in"),
        (np.full((8, 8), 1.5), "must lie in"),
        (np.zeros((8, 8, 3)), r"must be \(H, W\)"),
        (np.zeros((8, 8), np.int64), "uint8, bool or floating"),
        (np.zeros((0, 8)), r"must be \(H, W\)"),
        (3, "must be a path, PIL image, array or tensor; got int"),
    ],
)
def test_an_impossible_mask_is_refused(mask: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_mask(mask, size=SIZE, fit="pad")


# ------------------------------------------------------------------------------------------------------- between labels


def test_a_mix_averages_embeddings(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    wave, jump = pipe.embed_condition(["wave", "jump"])
    torch.testing.assert_close(pipe.embed_condition({"wave": 0.7, "jump": 0.3})[0], 0.7 * wave + 0.3 * jump)
    torch.testing.assert_close(pipe.embed_condition({"wave": 14, "jump": 6}), pipe.embed_condition({"wave": 0.7, "jump": 0.3}))
    listed = pipe.embed_condition([{"wave": 1, "jump": 1}, "jump", None])
    torch.testing.assert_close(listed, torch.stack(((wave + jump) / 2, jump, torch.zeros_like(jump))))
    assert torch.equal(pipe.embed_condition({"wave": 3})[0], wave)
    mixed = motion_of(pipe, image, {"wave": 0.5, "jump": 0.5}).flow
    assert all((mixed - motion_of(pipe, image, label).flow).abs().max() > 1e-3 for label in ("wave", "jump"))


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"wave": -1, "jump": 2}, "0 or more; got -1 for 'wave'"),
        ({"wave": float("nan")}, "finite numbers"),
        ({"wave": float("inf")}, "finite numbers"),
        ({"wave": True}, "finite numbers"),
        ({"wave": "1"}, "finite numbers"),
        ({"wave": 0, "jump": 0.0}, "positive, finite sum"),
        ({"wave": 1e308, "jump": 1e308}, "positive, finite sum"),
        ({}, "positive, finite sum"),
        ({"waev": 1}, "did you mean 'wave'"),
    ],
)
def test_impossible_mixes_are_refused(pipe: LatentFlowPipeline, mix: Any, message: str) -> None:
    for condition in (mix, [mix]):
        with pytest.raises(UserError, match=message):
            pipe.embed_condition(condition)


def test_guidance_pushes_away_from_a_negative_condition(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    pushed = motion_of(pipe, image, guidance_scale=2.0, negative_condition="jump").flow
    assert (pushed - motion_of(pipe, image, guidance_scale=2.0).flow).abs().max() > 1e-3
    # away + 2 (c - away) with away = c is c
    same = motion_of(pipe, image, guidance_scale=2.0, negative_condition="wave").flow
    torch.testing.assert_close(same, motion_of(pipe, image, guidance_scale=1.0).flow, rtol=0, atol=1e-4)
    null = pipe.embed_condition(None)
    by_tensor = motion_of(pipe, image, guidance_scale=2.0, negative_condition=null).flow
    assert torch.equal(by_tensor, motion_of(pipe, image, guidance_scale=2.0).flow)
    assert torch.isfinite(motion_of(pipe, image, None, guidance_scale=2.0, negative_condition={"wave": 1, "jump": 1}).flow).all()
    for scale in (0, 0.5, 1, None):
        with pytest.raises(UserError, match="guidance_scale must be above 1"):
            motion_of(pipe, image, guidance_scale=scale, negative_condition="jump")
    with pytest.raises(UserError, match=r"negative_condition must be one, or one per condition \(1\); got 2"):
        motion_of(pipe, image, guidance_scale=2.0, negative_condition=["jump", "wave"])


def test_mixes_on_the_command_line() -> None:
    assert parse_condition("wave=0.7,jump=0.3", LABELS) == {"wave": 0.7, "jump": 0.3}
    assert parse_condition("raise arms = 1e0, jump=.5", LABELS) == {"raise arms": 1.0, "jump": 0.5}
    assert parse_condition("a=1", ["a=1"]) == "a=1"  # an exact label wins
    assert parse_condition("raise arms", LABELS) == "raise arms"
    endless = f"wave={'1' * 100_000}x"  # takes minutes to match
    assert parse_condition(endless, LABELS) == endless
    assert parse_condition("wave=much", LABELS) == "wave=much"  # no mix: an unknown label, or a text
    assert parse_condition(None, LABELS) is None
    with pytest.raises(UserError, match=r"condition .*once; got .wave=1,wave=2"):
        parse_condition("wave=1,wave=2", LABELS)


# --------------------------------------------------------------------------------------------------- any length, loops


def test_a_long_clip_is_blended_without_seams(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    """Where windows overlap their weights run to nothing: steps across their ends are like the others."""
    motion = motion_of(pipe, image, num_frames=50, num_inference_steps=4)
    assert motion.num_frames == 50
    assert not motion.flow[:, :, 0].any()
    steps = motion.flow.diff(dim=2)[:, :, 1:].norm(dim=1).mean(dim=(0, 2, 3))
    ends = {int(frame) - 1 for window in plan_windows(50, longest=16) for frame in window.frames[[0, -1]]}
    across = steps[[end for end in ends if 0 < end < len(steps)]]
    assert across.max() <= 1.5 * steps.quantile(0.9)


@pytest.mark.parametrize("num_frames", [2, 8, 40])
def test_the_end_of_a_loop_blends_into_its_start(pipe: LatentFlowPipeline, image: np.ndarray, num_frames: int) -> None:
    opened, looped = (motion_of(pipe, image, num_frames=num_frames, loop=loop, num_inference_steps=4) for loop in (False, True))
    count = max(1, min(num_frames, pipe.config["num_frames"]) // 4)
    assert torch.equal(looped.flow[:, :, :-count], opened.flow[:, :, :-count])
    left = looped.flow.norm(dim=1).mean(dim=(0, 2, 3))[-count:] / opened.flow.norm(dim=1).mean(dim=(0, 2, 3))[-count:]
    assert (left.diff() < 0).all()
    assert left[-1] <= 0.51
    if count > 1:
        assert left[-1] <= 0.3
    with pytest.raises(UserError, match="num_frames must be a whole number from 2 to 10000; got 1"):
        motion_of(pipe, image, num_frames=1, loop=True)


def test_frames_of_a_long_clip_attend_to_as_many_as_in_training(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    """At any length the network attends to as many frames as in training, so that it sees no new distance or number of keys."""
    found: list[int | None] = []

    def look(unet: torch.nn.Module, arguments: tuple[Tensor, ...], known: dict[str, Any]) -> None:
        del unet, arguments
        found.append(known["attention_frames"])

    handle = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        for num_frames in (4, 10, 40):
            motion_of(pipe, image, num_frames=num_frames, num_inference_steps=1)
    finally:
        handle.remove()
    assert set(found) == {pipe.config["num_frames"]}


def test_windows_hold_the_known_first_frame(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    seen: list[Tensor] = []

    def look(called: LatentFlowPipeline, step: int, timestep: Tensor, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        del called, step, timestep
        seen.append(kwargs["latents"])
        return kwargs

    motion_of(pipe, image, num_frames=20, callback_on_step_end=look)
    assert seen[-1].shape == (1, 3, 20, 16, 16)
    known = pipe.motion_codec.encode(Motion.identity(1, 1, (16, 16), corners=False))
    torch.testing.assert_close(seen[-1][:, :, :1], known, rtol=0, atol=1e-3)
    assert (seen[-1][:, :, 1] - known[:, :, 0]).abs().max() > 0.1


def test_a_long_sample_does_not_depend_on_its_batch(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    both = motion_of(pipe, [image, image], ["wave", "jump"], num_frames=20, generator=[1, 2]).flow
    alone = motion_of(pipe, image, "jump", num_frames=20, generator=2).flow
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ streamed motion


@pytest.mark.parametrize("relative", [True, False])
def test_streaming_a_driving_clip_changes_nothing(
    pipe: LatentFlowPipeline, image: np.ndarray, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driving = np.random.default_rng(1).integers(0, 256, (7, 20, 40, 3), dtype=np.uint8)
    monkeypatch.setattr("lfdm.pipeline.control.frames_per_chunk", lambda *_: 3)
    whole = pipe.transfer(image, driving, relative=relative, output_type="uint8")
    tensor = torch.from_numpy(driving).permute(3, 0, 1, 2)
    streams: list[Any] = [
        iter(driving),
        [Image.fromarray(frame) for frame in driving],
        (driving[start : start + 2] for start in range(0, 7, 2)),
        tensor,
        iter((tensor[:, :4], tensor[:, 4:])),
        iter((driving[0], driving[1:])),
    ]
    for stream in streams:
        streamed = pipe.transfer(image, stream, relative=relative, output_type="uint8")
        assert torch.equal(streamed.motion.flow, whole.motion.flow)
        assert np.array_equal(array(streamed), array(whole))


def test_a_driving_clip_is_read_in_chunks(pipe: LatentFlowPipeline, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    ahead = []

    def stream() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(20):
            taken += 1
            yield image

    estimate = type(pipe.autoencoder).estimate_motions

    def watch(self: Any, source: Tensor, parts: Iterable[Tensor], **options: bool) -> Iterator[Motion]:
        def watched() -> Iterator[Tensor]:
            for part in parts:
                ahead.append((taken, part.shape[2]))
                yield part

        return estimate(self, source, watched(), **options)

    monkeypatch.setattr("lfdm.pipeline.control.frames_per_chunk", lambda *_: 6)
    monkeypatch.setattr(type(pipe.autoencoder), "estimate_motions", watch)
    pipe.transfer(image, stream())
    assert ahead == [(6, 6), (12, 6), (18, 6), (20, 2)]


def test_a_relative_transfer_starts_with_the_image_itself(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    driving = np.random.default_rng(2).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    relative, absolute = (pipe.transfer(image, driving, relative=relative, output_type="uint8") for relative in (True, False))
    assert np.array_equal(array(relative)[0, 0], image)
    assert not np.array_equal(array(absolute)[0, 0], image)


def test_the_callback_of_a_transfer_reports_and_may_stop_it(
    pipe: LatentFlowPipeline, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    driving = np.random.default_rng(1).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
    monkeypatch.setattr("lfdm.pipeline.decoding.frames_per_chunk", lambda *_: 3)
    told: list[int] = []

    def stop(decoded: int) -> None:
        told.append(decoded)
        if decoded == limit:
            raise InterruptedError

    limit = 0
    pipe.transfer(image, driving, callback_on_decode=stop)
    assert told == [3, 6, 7]
    limit = 6
    with pytest.raises(InterruptedError):
        pipe.transfer(image, driving, callback_on_decode=stop)
    assert told[3:] == [3, 6]


@pytest.mark.parametrize(
    ("driving", "message"),
    [
        ([], "no frames"),
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), "no frames"),
        (np.zeros((SIZE, SIZE), np.uint8), "driving frames must be"),
        ([np.zeros((SIZE, SIZE, 4), np.uint8)], "driving frames must be"),
        (["x"], "driving frames must be"),
        (3, "an iterable of frames; got int"),
    ],
)
def test_an_impossible_driving_clip_is_refused(pipe: LatentFlowPipeline, image: np.ndarray, driving: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe.transfer(image, driving)


# ------------------------------------------------------------------------------------------------------------- previews


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "uint8"])
def test_an_output_shows_itself(pipe: LatentFlowPipeline, image: np.ndarray, output_type: Any, tmp_path: Path) -> None:
    out = pipe([image, image], "wave", num_inference_steps=1, generator=[0, 1], output_type=output_type)
    preview = out.show(("generated", "flow", "arrows"), sample=1)
    assert preview.frames.shape == (4, 16 + 192, 3 * 192 + 2 * 4, 3)
    expected = pipe(image, "wave", num_inference_steps=1, generator=1, output_type="uint8").frames[0]
    assert np.abs(preview.frames[:, 16 : 16 + 192 : 6, :192:6].astype(int) - expected).max() <= 1
    html = preview._repr_html_()
    assert html.startswith('<img alt="4 frames" src="data:image/gif;base64,R0lGOD')
    assert "4 frames of 584x208" in repr(preview)
    assert preview.save(tmp_path / "preview.gif").stat().st_size > 1000
    for wrong in (2, "0"):
        with pytest.raises(UserError, match=f"sample must be a whole number from 0 to 1; got {wrong!r}"):
            out.show(sample=wrong)  # pyright: ignore[reportArgumentType] - one is no number
    with pytest.raises(UserError, match="needs the source image"):
        out.show(("source",))
