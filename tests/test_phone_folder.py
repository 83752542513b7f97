"""From a folder of clips as phones record them to videos: rotated, mirrored, HDR, with sound, at uneven and high rates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

from lfdm.config.presets import Preset
from lfdm.data.corpora.folder import write_folder
from lfdm.data.fitting import fit_frames
from lfdm.data.index import read_index
from lfdm.data.puppets.data_set import render_clip
from lfdm.data.sound import has_sound
from lfdm.data.video import read_video, video_info
from lfdm.pipeline.outputs import VideoFiles
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

# Display matrices (what is stored is shown turned or mirrored), and how frames must be stored for them to be shown upright.
TURNED_LEFT = [0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30]
TURNED_RIGHT = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
MIRRORED = [-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    id(TURNED_LEFT): lambda frames: frames[:, ::-1].swapaxes(1, 2),
    id(TURNED_RIGHT): lambda frames: frames[:, :, ::-1].swapaxes(1, 2),
    id(MIRRORED): lambda frames: frames[:, :, ::-1],
}
PQ, HLG = 16, 18
"""Transfer functions, by their number in ITU-T H.273."""
UNEVEN = (0, 33, 67, 100, 150, 167, 233, 267)
"""Milliseconds of frames in poor light; they repeat."""


@dataclass(frozen=True, kw_only=True)
class PhoneClip:
    """How one clip is recorded."""

    path: str
    fps: int = 30
    portrait: bool = False
    matrix: list[int] | None = None
    transfer: int | None = None
    uneven: bool = False
    sound: bool = True


CLIPS = (
    PhoneClip(path="wave/anna/IMG_0001.MOV", portrait=True, matrix=TURNED_LEFT),
    PhoneClip(path="jump/anna/IMG_0002.MOV", transfer=HLG),
    PhoneClip(path="wave/ben/VID_0001.mp4", uneven=True),
    PhoneClip(path="jump/ben/VID_0002.mp4", portrait=True, matrix=MIRRORED),
    PhoneClip(path="wave/cleo/20260101_120000.mp4", fps=60, sound=False),
    PhoneClip(path="jump/cleo/20260101_120100.mp4", portrait=True, matrix=TURNED_RIGHT, transfer=PQ),
)


def upright(number: int, clip: PhoneClip, height: int, seconds: float) -> np.ndarray:
    """Return the frames of a clip as they should be seen, (t, H, W, 3), its short side being `height`."""
    label, person = clip.path.split("/")[:2]
    subject = ("anna", "ben", "cleo").index(person)
    length = round(seconds * clip.fps)
    frames = render_clip(subject, label, number, size=height, num_frames=length, fps=clip.fps, truth=False).frames
    side = (round(height * 16 / 9) - height) // 16 * 8
    margins = ((0, 0), (side, side), (0, 0), (0, 0)) if clip.portrait else ((0, 0), (0, 0), (side, side), (0, 0))
    return np.pad(frames, margins, mode="edge")


def write_phone_folder(folder: Path, *, height: int, seconds: float) -> dict[str, np.ndarray]:
    """Write CLIPS and pictures between them, and return the frames of each clip as they should be seen."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'lfdm[heif]'")
    seen = {}
    for number, clip in enumerate(CLIPS):
        frames = upright(number, clip, height, seconds)
        path = folder / clip.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, frames, clip)
        seen[clip.path] = frames
    still = seen[CLIPS[0].path][0]
    pillow_heif.from_pillow(Image.fromarray(still)).save(folder / "wave" / "anna" / "IMG_0001.HEIC")
    Image.fromarray(still).save(folder / "jump" / "ben" / "IMG_0003.jpg")
    (folder / "wave" / "anna" / "IMG_0001.AAE").write_text("<?xml version='1.0'?>")
    return seen


def write_clip(path: Path, frames: np.ndarray, clip: PhoneClip) -> None:
    """Encode frames as a phone does."""
    stored = frames if clip.matrix is None else STORED[id(clip.matrix)](frames)
    hdr = clip.transfer is not None
    options = {"crf": "18", "preset": "veryfast", "bf": "0"} | ({"x265-params": "log-level=none"} if hdr else {})
    rate = 1000 if clip.uneven else clip.fps
    with av.open(path, "w") as file:
        stream = cast(VideoStream, file.add_stream("libx265" if hdr else "libx264", rate=rate, options=options))
        stream.height, stream.width, stream.pix_fmt = *stored.shape[1:3], "yuv420p10le" if hdr else "yuv420p"
        if hdr:
            context: Any = stream.codec_context
            context.color_trc, context.color_primaries, context.colorspace = clip.transfer, 9, 9
        if clip.matrix is not None:
            stream.set_display_matrix(clip.matrix)
        sound = cast(AudioStream, file.add_stream("aac", rate=44_100, layout="mono")) if clip.sound else None
        for index, array in enumerate(stored):
            frame = hdr_frame(array, clip.transfer) if clip.transfer else av.VideoFrame.from_ndarray(array, format="rgb24")
            period, place = divmod(index, len(UNEVEN))
            frame.pts, frame.time_base = 300 * period + UNEVEN[place] if clip.uneven else index, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            file.mux(list(tone(sound, len(frames) / clip.fps)))


def tone(stream: AudioStream, seconds: float) -> "Iterator[av.Packet[Any]]":
    time = np.arange(round(44_100 * seconds)) / 44_100
    frame = av.AudioFrame.from_ndarray((8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)[None], layout="mono")
    frame.sample_rate, frame.pts = 44_100, 0
    yield from stream.encode(frame)
    yield from stream.encode(None)


def hdr_frame(rgb: np.ndarray, transfer: int) -> av.VideoFrame:
    """Convert an sRGB frame to HDR, diffuse white at 203 cd/m2 (BT.2408), in BT.2020 with 10 bits."""
    signal = rgb / 255
    linear = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    to_bt2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    light = 203 * (linear @ to_bt2020.T)
    if transfer == PQ:
        power = (light / 10_000) ** (2610 / 16384)
        signal = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:
        luminance = (light @ np.array([0.2627, 0.6780, 0.0593]))[..., None] / 1000
        scene = light / 1000 / np.maximum(luminance, 1e-9) ** (0.2 / 1.2)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    frame = av.VideoFrame.from_ndarray(np.rint(signal.clip(0, 1) * 65535).astype(np.uint16), format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
    frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
    return frame


def turned(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yield square frames in their eight orientations, upright first."""
    for array in (frames, frames.swapaxes(1, 2)):
        yield from (array, array[:, ::-1], array[:, :, ::-1], array[:, ::-1, ::-1])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.slow
def test_a_phone_folder_becomes_clips_models_and_videos(tiny_preset: Preset, tmp_path: Path) -> None:
    seen = write_phone_folder(tmp_path / "phone", height=96, seconds=0.5)
    report = write_folder(tmp_path / "phone", tmp_path / "data", size=32, test_fraction=0.34, num_workers=1)
    reasons = {Path(skipped.path).name: skipped.reason for skipped in report.skipped}
    assert set(reasons) == {"IMG_0001.HEIC", "IMG_0003.jpg", "IMG_0001.AAE"}
    records = read_index(tmp_path / "data")
    assert {(record.label, record.subject) for record in records} == {(*clip.path.split("/")[:2],) for clip in CLIPS}
    for clip in CLIPS:
        record = next(record for record in records if clip.path in record.path)
        frames, expected = read_video(tmp_path / "data" / record.path), fit_frames(seen[clip.path], 32, "pad")
        assert frames.shape == expected.shape
        assert record.fps == pytest.approx(27 if clip.uneven else clip.fps, rel=0.05)
        differences = [difference(frames, other) for other in turned(expected)]
        assert differences[0] < (12 if clip.transfer else 4)
        assert differences[0] < 0.5 * min(differences[1:])

    def short(training: Any) -> Any:
        return replace(training, optimization=replace(training.optimization, num_steps=2, batch_size=2))

    preset = replace(
        tiny_preset,
        autoencoder_training=short(tiny_preset.autoencoder_training),
        diffusion_training=short(tiny_preset.diffusion_training),
    )
    train_autoencoder(preset, tmp_path / "data", tmp_path / "stage1")
    train_diffusion(preset, tmp_path / "data", tmp_path / "stage1", tmp_path / "stage2")
    pipe = LatentFlowPipeline.from_pretrained(tmp_path / "stage2")
    pipe.set_progress_bar_config(disable=True)
    still, driving = tmp_path / "phone/wave/anna/IMG_0001.HEIC", tmp_path / "phone" / CLIPS[0].path
    made = pipe(str(still), "wave", output_type="uint8", generator=0)
    assert difference(np.asarray(made.frames)[0, :1], fit_frames(seen[CLIPS[0].path][:1], 32, "pad")) < 6
    moved = pipe.transfer(f"{tmp_path / 'phone' / CLIPS[3].path}@0.2s", driving, output_type="uint8")
    info = video_info(driving)
    files = VideoFiles(out=tmp_path / "moved.mp4", fps=info.fps, sound=driving)
    source = np.asarray(moved.frames)[0, 0]
    assert list(files.write(pipe, source, [moved])) == [tmp_path / "moved.mp4"]
    assert has_sound(tmp_path / "moved.mp4")
    assert video_info(tmp_path / "moved.mp4").frames == info.frames == len(seen[CLIPS[0].path])
