"""The puppets: what every clip must be, and that their motion is known exactly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lfdm.config.video import Size, SizeInput
from lfdm.data.index import labels, read_index
from lfdm.data.progress import Progress
from lfdm.data.puppets.actions import ACTIONS, Style, act
from lfdm.data.puppets.data_set import PuppetClip, render_clip, write_puppets
from lfdm.data.puppets.figures import make_subject, place
from lfdm.data.truth import load_truth, save_truth, truth_path
from lfdm.data.video import read_video
from lfdm.errors import UserError

SUBJECTS = range(6)
LIMBS = ("upper arm", "forearm", "thigh", "shin")
ENDS = ("left hand", "right hand", "left foot", "right foot")


def truth_of(clip: PuppetClip) -> tuple[np.ndarray, ...]:
    assert clip.truth is not None
    return clip.truth.flow, clip.truth.visible, clip.truth.interior, clip.truth.figure, clip.truth.drift


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Bilinear, image (H, W, 3) read at pixel + flow (t, H, W, 2)."""
    height, width = image.shape[:2]
    x, y = flow[..., 0] + np.arange(width), flow[..., 1] + np.arange(height)[:, None]
    left, top = (np.clip(np.floor(value).astype(int), 0, side - 2) for value, side in ((x, width), (y, height)))
    right_share, bottom_share = (x - left)[..., None], (y - top)[..., None]
    image = image.astype(np.float64)
    upper = image[top, left] * (1 - right_share) + image[top, left + 1] * right_share
    lower = image[top + 1, left] * (1 - right_share) + image[top + 1, left + 1] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


def nearest_accuracy(features: np.ndarray, actions: np.ndarray, subjects: np.ndarray) -> float:
    """Share of clips whose nearest clip of another subject has the same label; a tie counts in equal shares."""
    distances = np.abs(features[:, None] - features[None]).sum(-1)
    distances[subjects[:, None] == subjects[None]] = np.inf
    nearest = distances == distances.min(1, keepdims=True)
    return float(((nearest & (actions[:, None] == actions[None])).sum(1) / nearest.sum(1)).mean())


@pytest.mark.parametrize("size", [32, 48, 64, 96, (64, 112), (112, 64)])
def test_frame_0_warped_by_the_flow_is_every_frame(size: SizeInput) -> None:
    moved = []
    for seed, action in enumerate(ACTIONS):
        clip = render_clip(seed, action, seed, size=size)
        moved.append(np.abs(clip.frames[1:].astype(int) - clip.frames[0]).mean())
        flow, _, interior, figure, _ = truth_of(clip)
        error = np.abs(warp(clip.frames[0], flow.astype(np.float16).astype(np.float64)) - clip.frames)[1:]
        for pixels in (interior[1:], (interior & figure)[1:])[: 1 if min(Size.parse(size)) < 64 else 2]:
            assert pixels.any()
            assert error[pixels].mean() <= 1.0
            assert np.percentile(error[pixels], 99) <= 6.0
    assert min(moved) > 1.0  # there was something to reproduce


def test_a_rectangle_has_the_figure_of_the_square_of_its_short_side() -> None:
    square = render_clip(2, "kick", 3)
    for size, inside in (((64, 112), np.s_[:, :, 24:88]), ((112, 64), np.s_[:, 24:88])):
        clip = render_clip(2, "kick", 3, size=size)
        assert clip.frames.shape == (16, *size, 3)
        assert np.abs(clip.frames[inside].astype(int) - square.frames).max() <= 1
        for index in (0, 3):  # flow and figure
            assert np.isclose(truth_of(clip)[index][inside], truth_of(square)[index], atol=1e-4).mean() > 0.99


def test_visible_background_is_what_a_finer_frame_0_shows() -> None:
    clip = render_clip(2, "jump", 3)
    fine_figure = truth_of(render_clip(2, "jump", 3, size=1024, num_frames=2))[3][0]
    flow, visible, _, figure, drift = truth_of(clip)
    num_hidden = num_shown = 0
    for k in range(1, len(flow)):
        background = ~figure[k]
        background[[0, 1, -2, -1]] = background[:, [0, 1, -2, -1]] = False
        assert (flow[k][background] == drift[k]).all()
        rows, columns = np.nonzero(background)
        x, y = ((place + shift + 0.5) * 16 for place, shift in zip((columns, rows), drift[k], strict=True))
        around = [fine_figure[(y + dy).astype(int), (x + dx).astype(int)] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        hidden, shown = np.all(around, axis=0), ~np.any(around, axis=0)
        assert not visible[k][background][hidden].any()
        assert visible[k][background][shown].all()
        num_hidden, num_shown = num_hidden + int(hidden.sum()), num_shown + int(shown.sum())
    assert num_hidden > 500
    assert num_shown > 10000


def test_landing_outside_the_frame_is_not_visible() -> None:
    outside_seen = 0
    for seed in SUBJECTS:
        flow, visible, interior, _, _ = truth_of(render_clip(seed, "walk", seed))
        position = flow + np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1) + 0.5
        outside = ((position < 0) | (position > 64)).any(-1)
        assert not (visible & outside).any()
        assert not (interior & ~visible).any()
        outside_seen += int(outside.sum())
    assert outside_seen > 0


def test_frame_0_is_at_rest_and_all_visible() -> None:
    flow, visible, _, figure, drift = truth_of(render_clip(1, "kick", 1))
    assert np.abs(flow[0]).max() < 1e-4
    assert visible[0].all()
    assert 0.05 < figure[0].mean() < 0.4
    assert not drift[0].any()


def test_flow_is_finite_everywhere() -> None:
    for action in ACTIONS:
        flow = truth_of(render_clip(4, action, 9, num_frames=40, size=32))[0]
        assert flow.shape == (40, 32, 32, 2)
        assert np.isfinite(flow.astype(np.float16)).all()


def test_labels_show_in_the_motion_and_not_in_the_first_frame() -> None:
    clips = [(seed, index) for seed in SUBJECTS for index in range(len(ACTIONS)) for _ in range(2)]
    frames = np.stack(
        [render_clip(seed, ACTIONS[index], n, size=32, truth=False).frames for n, (seed, index) in enumerate(clips)]
    ).astype(np.float32)
    subjects, actions = np.array(clips).T
    first = frames[:, 0].reshape(len(clips), -1)
    assert nearest_accuracy(first, actions, subjects) == pytest.approx(1 / len(ACTIONS), abs=1e-9)
    moved = np.abs(frames[:, 4::3] - frames[:, :1]).mean(-1)
    moved /= moved.mean(axis=(1, 2, 3), keepdims=True)
    assert nearest_accuracy(moved.reshape(len(clips), -1), actions, subjects) > 0.7


def test_a_subject_always_starts_from_the_same_frame() -> None:
    first = [render_clip(3, action, take, truth=False).frames[0] for action in ACTIONS for take in (0, 1)]
    assert all(np.array_equal(first[0], frame) for frame in first[1:])
    assert not np.array_equal(first[0], render_clip(5, ACTIONS[0], 0, truth=False).frames[0])


def test_takes_differ_and_repeat() -> None:
    one, again, other = (render_clip(3, "wave", take) for take in (0, 0, 1))
    assert np.array_equal(one.frames, again.frames)
    assert all(np.array_equal(a, b) for a, b in zip(truth_of(one), truth_of(again), strict=True))
    assert np.abs(truth_of(one)[0] - truth_of(other)[0]).max() > 1.0


def test_figures_are_as_tall_and_their_limbs_as_wide_as_promised() -> None:
    for seed in range(40):
        figure = truth_of(render_clip(seed, "bow", 0, num_frames=2))[3][0]
        rows = np.flatnonzero(figure.any(1))
        assert 0.65 <= (rows[-1] - rows[0] + 1) / 64 <= 0.8
        for part in make_subject(seed).parts:
            if part.name.endswith(LIMBS):
                assert 2 * min(part.shape.start_radius, part.shape.end_radius) >= 0.07
                assert 2 * max(part.shape.start_radius, part.shape.end_radius) <= 0.10


@pytest.mark.parametrize("action", ACTIONS)
def test_a_hand_or_a_foot_travels(action: str) -> None:
    time = np.arange(16) / 8
    for seed in range(20):
        subject = make_subject(seed)
        for take in (Style(tempo=0.87, amplitude=0.88, lag=0.1), Style(tempo=1.15, amplitude=1.12, lag=0.0)):
            joints = place(subject, act(action, take, subject.reach, time))
            ways = [np.linalg.norm(joints[name][0] - joints[name][0][0], axis=1) for name in ENDS]
            assert max(way.max() for way in ways) >= 0.2
            assert max(way[5] for way in ways) > 0.05
            assert all((joints[name][0] > 0.0).all() and (joints[name][0] < 1.0).all() for name in joints)


def test_planted_feet_stay_on_the_floor() -> None:
    subject = make_subject(7)
    joints = place(subject, act("squat", Style(), subject.reach, np.arange(16) / 8))
    for name in ("left foot", "right foot"):
        assert np.abs(joints[name][0] - joints[name][0][0]).max() < 1e-9


def test_the_camera_drifts_a_little() -> None:
    drifts = np.stack([truth_of(render_clip(0, "wave", take, size=32, num_frames=48))[4] for take in range(20)])
    length = np.linalg.norm(drifts, axis=-1)
    assert not drifts[:, 0].any()
    assert length.max() <= 0.02 * 32
    assert length.max(axis=1).min() > 0.0


@pytest.mark.parametrize("size", [32, 64])
def test_textures_have_no_detail_finer_than_4_pixels(size: int) -> None:
    """A wave of half-length 4 pixels changes by at most 2 sin(pi / 8) of its amplitude from one pixel to the next."""
    u = np.linspace(0, 1, 2001, dtype=np.float32)
    step = np.float32(1 / size)
    for seed in SUBJECTS:
        subject = make_subject(seed)
        for texture in [subject.wall, subject.floor, *(part.texture for part in subject.parts)]:
            largest = np.abs(texture.amplitude).sum(0) * 2 * np.sin(np.pi / 8) + 1e-2
            for du, dv in ((1, 0), (0, 1), (0.6, 0.8)):
                here, there = texture(u, u * 0, size), texture(u + step * du, u * 0 + step * dv, size)
                assert (np.abs(there - here) <= largest).all()


@pytest.mark.parametrize("size", [32, 50, 96])
def test_any_size(size: int) -> None:
    clip = render_clip(0, "clap", 0, size=size, num_frames=3)
    assert clip.frames.shape == (3, size, size, 3)
    assert clip.frames.dtype == np.uint8
    assert truth_of(clip)[0].shape == (3, size, size, 2)
    assert render_clip(0, "clap", 0, size=size, num_frames=3, truth=False).truth is None


def test_a_longer_clip_goes_on() -> None:
    short, long = (render_clip(0, "jump", 0, num_frames=n, truth=False).frames for n in (16, 64))
    assert np.array_equal(short, long[:16])
    assert np.abs(long[40:].astype(int) - long[0]).mean() > 1.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": 31}, "size must be a whole number from 32 to 4096, or HEIGHTxWIDTH of two such numbers; got 31"),
        ({"num_frames": 1}, "num_frames must .* got 1"),
        ({"fps": 0.0}, "fps must .* got 0.0"),
        ({"fps": float("nan")}, "fps must .* got nan"),
        ({"take_seed": -1}, "take_seed must .* got -1"),
        ({"subject": -1}, "subject must .* got -1"),
        ({"action": "fly"}, "one of bow, clap.*got 'fly'"),
    ],
)
def test_impossible_clips_are_refused(change: dict[str, object], named: str) -> None:
    arguments = {"subject": 0, "action": "wave", "take_seed": 0} | change
    with pytest.raises(UserError, match=named):
        render_clip(**arguments)  # pyright: ignore[reportArgumentType]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_data_set_holds_what_was_rendered(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    index = write_puppets(
        tmp_path, num_subjects=3, num_takes=1, size=32, num_frames=4, num_workers=0, progress=lambda *n: seen.append(n)
    )
    records = read_index(tmp_path)
    assert index == tmp_path / "clips.csv"
    assert len(records) == 3 * len(ACTIONS)
    assert seen[-1] == ("rendering puppets", 3, 3)
    assert labels(records) == list(ACTIONS)
    by_split = {split: {record.subject for record in records if record.split == split} for split in ("train", "test")}
    assert (len(by_split["train"]), len(by_split["test"])) == (2, 1)
    assert not by_split["train"] & by_split["test"]
    for record in records:
        clip = tmp_path / record.path
        assert read_video(clip).shape == (4, 32, 32, 3)
        assert truth_path(clip).exists() == (record.split == "test")
    moving = next(record for record in records if record.split == "test" and record.label == "raise arms")
    frames, truth = read_video(tmp_path / moving.path), load_truth(truth_path(tmp_path / moving.path))
    error = np.abs(warp(frames[0], truth.flow) - frames)[truth.interior]
    assert error.mean() <= 1.0
    assert np.abs(frames[3].astype(int) - frames[0]).mean() > 1.0


def test_a_data_set_depends_only_on_its_seed(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for root, seed, workers in ((one, 0, 0), (two, 0, 2), (other, 1, 0)):
        write_puppets(root, num_subjects=2, num_takes=1, size=32, num_frames=2, seed=seed, num_workers=workers)
    assert files(one) == files(two)
    assert files(one).keys() == files(other).keys()
    clips = [name for name in files(one) if name.endswith(".avi")]
    assert all(files(one)[name] != files(other)[name] for name in clips)


@pytest.mark.parametrize(("truth", "expected"), [("none", 0), ("all", 2)])
def test_truth_is_stored_only_where_requested(tmp_path: Path, truth: str, expected: int) -> None:
    write_puppets(tmp_path, num_subjects=2, num_takes=1, size=32, num_frames=2, truth=truth, num_workers=0)  # pyright: ignore[reportArgumentType]
    assert len(list(tmp_path.rglob("*.truth.npz"))) == expected * len(ACTIONS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_subjects": 0}, "num_subjects"),
        ({"num_subjects": 10**12}, "num_subjects"),
        ({"num_takes": 0}, "num_takes"),
        ({"size": 16}, "size"),
        ({"size": 10**8}, "size"),
        ({"size": 2048, "num_frames": 100}, "num_frames x height x width"),
        ({"num_frames": 0}, "num_frames"),
        ({"fps": -1.0}, "fps"),
        ({"fps": 1e9}, "fps"),
        ({"seed": -1}, "seed"),
        ({"test_fraction": 1.5}, "test_fraction"),
        ({"test_fraction": float("nan")}, "test_fraction"),
        ({"truth": "some"}, "truth"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_impossible_data_sets_are_refused(tmp_path: Path, change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=f"{named} must "):
        write_puppets(tmp_path / "new", **change)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data", [b"nothing", b"PK\x03\x04" + bytes(60)])
def test_a_damaged_truth_file_is_named(tmp_path: Path, data: bytes) -> None:
    clip = render_clip(0, "wave", 0, size=32, num_frames=2)
    assert clip.truth is not None
    path = save_truth(truth_path(tmp_path / "wave.avi"), clip.truth)
    whole = path.read_bytes()
    for damaged in (data, whole[:100], whole[:-30], whole[:40] + bytes(40) + whole[80:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"wave\.truth\.npz"):
            load_truth(path)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        write_puppets(tmp_path, num_subjects=1, num_takes=1, size=32, num_frames=2, num_workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_leaves_no_data_set(tmp_path: Path, on_full_disk: Callable[[str, int], str]) -> None:
    call = f"write_puppets({str(tmp_path / 'set')!r}, num_subjects=2, num_workers=0)"
    code = f"from lfdm.data.puppets.data_set import write_puppets\n{call}"
    assert "File too large" in on_full_disk(code, 20_000)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_data_set_leaves_nothing_and_can_be_made_again(tmp_path: Path) -> None:
    def write(progress: Progress | None = None) -> None:
        write_puppets(tmp_path, num_subjects=2, num_takes=1, size=32, num_frames=2, num_workers=0, progress=progress)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(stop)
    assert list(tmp_path.iterdir()) == []
    write()
    assert len(read_index(tmp_path)) == 2 * len(ACTIONS)
    with pytest.raises(FileExistsError, match="already holds"):
        write()


def test_truth_round_trip(tmp_path: Path) -> None:
    clip = render_clip(0, "squat", 0, size=32)
    assert clip.truth is not None
    loaded = load_truth(save_truth(truth_path(tmp_path / "squat.avi"), clip.truth))
    assert [path.name for path in tmp_path.iterdir()] == ["squat.truth.npz"]
    assert loaded.flow == pytest.approx(clip.truth.flow, abs=0.01)
    for name in ("visible", "interior", "figure", "drift"):
        assert np.array_equal(getattr(loaded, name), getattr(clip.truth, name))


def test_what_is_no_truth_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"wave\.truth\.npz"):
        load_truth(tmp_path / "wave.truth.npz")
    (tmp_path / "wave.truth.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"wave\.truth\.npz"):
        load_truth(tmp_path / "wave.truth.npz")
