"""Rendered data sets of characters; skipped where there is no OpenGL."""

import gc
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from lfdm.config.video import Size
from lfdm.data.characters.clips import ClipSettings, Scene, Take
from lfdm.data.characters.data_set import write_characters
from lfdm.data.characters.gltf import read_character
from lfdm.data.characters.render import Light, make_context
from lfdm.data.free_motion import FREE_LABEL
from lfdm.data.index import read_index
from lfdm.data.truth import Truth, load_truth, truth_path
from lfdm.data.video import read_video
from lfdm.errors import MissingExtraError, UserError
from tests.data.characters.character_files import make_document, write_gltf, write_people

SMALL = {"num_subjects": 4, "num_takes": 2, "size": (32, 48), "num_frames": 4, "test_fraction": 0.25}
EASY = ClipSettings(size=Size(64, 96), num_frames=6, fps=6.0, difficulty="easy", backgrounds=(), shadows=False)
TAKE = Take(speed=1.0, start=0.0, amplitude=1.0)


@pytest.fixture(autouse=True, scope="module")
def opengl() -> Iterator[None]:
    """Skip without OpenGL; leave nothing of it to be freed in processes that later tests fork, where that hangs."""
    pytest.importorskip("moderngl")
    try:
        make_context().release()
    except (UserError, MissingExtraError) as error:
        pytest.skip(str(error))
    yield
    gc.collect()


def make_scene(folder: Path, settings: ClipSettings = EASY, *, mirrored: bool = False, seed: int = 0) -> Scene:
    character = read_character(write_gltf(folder / "x.gltf", make_document("Ann", (0.8, 0.2, 0.2))))
    return Scene([character], settings, np.random.default_rng(seed), mirrored=mirrored)


def warp_first(frames: np.ndarray, truth: Truth) -> np.ndarray:
    """Warp frame 0 by the exact flow: (t, H, W, 3)."""
    rows, columns = np.indices(frames.shape[1:3])
    first = frames[0].astype(np.float32)
    warped = [
        [map_coordinates(first[..., c], [rows + flow[..., 1], columns + flow[..., 0]], order=1, mode="nearest") for c in range(3)]
        for flow in truth.flow
    ]
    return np.moveaxis(np.array(warped), 1, -1)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("difficulty", ["easy", "handheld"])
def test_frame_0_warped_by_the_truth_is_frame_k(tmp_path: Path, difficulty: str, mirrored: bool) -> None:
    """Without shading, which turns with the surfaces, and without patterns finer than a pixel."""
    settings = replace(EASY, difficulty=difficulty)
    scene = make_scene(tmp_path, settings, mirrored=mirrored)
    scene.light = Light(scene.light.sun, shading=0.0)
    action = scene.figure.actions["Wave_Left"]
    poses = [scene.figure.skin(scene.rest.blend(action.sample(scene.figure.skeleton.rest, 0.1 * k), k / 5)) for k in range(6)]
    views = [scene.camera.view(k / 6) for k in range(6)]
    even = [replace(view, exposure=1.0) for view in views]
    frames = np.stack([scene.renderer.draw(pose, view, scene.light) for pose, view in zip(poses, even, strict=True)])
    truth = scene.renderer.trace_clip([pose[0] for pose in poses], views)
    inside = truth.interior & (truth.figure if settings.hard else True)
    errors = np.abs(warp_first(frames, truth) - frames)[inside]
    assert inside.mean() > (0.05 if settings.hard else 0.6)
    assert errors.mean() <= 2
    assert np.abs(truth.flow[0]).max() < 1e-3
    assert truth.visible[0].mean() > 0.99
    assert np.abs(truth.flow[-1][truth.figure[-1]]).max() > 5


def test_frame_0_warped_by_the_truth_of_free_motion_is_frame_k(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    scene.light = Light(scene.light.sun, shading=0.0)
    first, _ = scene.render(scene.figure.actions["Point"], TAKE, truth=False)
    moved = 0.0
    for seed in range(3):
        frames, truth = scene.render_free(np.random.default_rng(seed), truth=True)
        assert truth is not None
        assert np.array_equal(frames[0], first[0])
        inside = truth.interior & truth.figure
        assert np.abs(warp_first(frames, truth) - frames)[inside].mean() <= 2
        moved = max(moved, float(np.abs(truth.flow[truth.figure]).max()))
    assert moved > 5


def test_a_raised_arm_uncovers_what_frame_0_hides(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    _, truth = scene.render(scene.figure.actions["Wave_Left"], TAKE, truth=True)
    assert truth is not None
    hidden = ~truth.visible[3]
    assert 0.001 < hidden.mean() < 0.2
    still = truth.figure[0] & truth.figure[3] & (np.abs(truth.flow[3]).max(-1) < 0.1)
    assert hidden[still].mean() < 0.03  # pixels of the outline


def test_a_mirrored_scene_is_the_mirror_image(tmp_path: Path) -> None:
    plain, mirrored = (make_scene(tmp_path, mirrored=value) for value in (False, True))
    action = plain.figure.actions["Point"]
    one, two = (scene.render(action, TAKE, truth=False)[0] for scene in (plain, mirrored))
    assert np.abs(one.astype(int) - two[:, :, ::-1]).mean() < 0.3


def test_shadows_darken_the_ground(tmp_path: Path) -> None:
    lit, shaded = (make_scene(tmp_path, replace(EASY, shadows=value)) for value in (False, True))
    action = lit.figure.actions["Point"]
    (one, truth), (two, _) = (scene.render(action, TAKE, truth=True) for scene in (lit, shaded))
    assert truth is not None
    change = one.astype(int) - two
    assert 0.005 < (change.max(-1) > 10)[~truth.figure].mean() < 0.3
    assert change.min() >= -2


HOSTILE = {"beyond": {"count": 5000}, "billion": {"count": 10**9}, "nowhere": {"bufferView": 10**6}}
"""Changes of an accessor."""


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("characters")
    people = write_people(folder / "people")
    (people / "broken.gltf").write_text("{")
    for name, changes in HOSTILE.items():
        document = make_document("Eve", (0, 0, 0))
        document.json["accessors"][2] |= changes
        write_gltf(people / f"men-{name}.gltf", document)
    result = write_characters(
        people,
        folder / "data",
        num_subjects=4,
        num_takes=2,
        size=(32, 48),
        num_frames=4,
        truth="all",
        test_fraction=0.25,
        num_workers=1,
    )
    assert [name for name in (*HOSTILE, "broken") if not any(f"{name}.gltf" in reason for reason in result.skipped)] == []
    assert len(result.skipped) == 1 + len(HOSTILE)
    assert set(result.visible) == {"wave left", "point"}
    assert all(0.5 < share <= 1 for share in result.visible.values())
    return folder / "data"


def test_only_the_label_decides_the_motion(data_set: Path) -> None:
    records = read_index(data_set)
    assert len(records) == 4 * 2 * 2
    assert {(record.height, record.width, record.frames) for record in records} == {(32, 48, 4)}
    clips = defaultdict(list)
    for record in records:
        clips[record.subject].append(read_video(data_set / record.path))
    for group in clips.values():
        assert all(np.array_equal(clip[0], group[0][0]) for clip in group)
        assert all(not np.array_equal(one, two) for i, one in enumerate(group) for two in group[:i])
    assert len({group[0][0].tobytes() for group in clips.values()}) == 4
    truth = load_truth(truth_path(data_set / records[0].path))
    assert truth.flow.shape == (4, 32, 48, 2)


def test_free_clips_begin_like_the_others_and_leave_them_as_they_are(data_set: Path, tmp_path: Path) -> None:
    options = {"num_subjects": 4, "size": (32, 48), "num_frames": 4, "truth": "all", "test_fraction": 0.25, "num_workers": 1}
    people = data_set.parent / "people"
    write_characters(people, tmp_path / "free", **options, free_motion=1 / 3)
    records = read_index(tmp_path / "free")
    clips = {record.path: read_video(tmp_path / "free" / record.path) for record in records}
    assert [record.label for record in records].count(FREE_LABEL) == 4 * 2
    for record in records:
        others = [clips[other.path] for other in records if other.subject == record.subject and other is not record]
        assert all(np.array_equal(clips[record.path][0], other[0]) for other in others)
        assert truth_path(tmp_path / "free" / record.path).is_file()
    free = files_of(tmp_path / "free")
    assert all(free[path] == data for path, data in files_of(data_set).items() if path.name != "clips.csv")
    with pytest.raises(UserError, match="free_motion"):
        write_characters(people, tmp_path / "no", **options, free_motion=1.0)


def test_the_same_arguments_give_the_same_clips(data_set: Path, tmp_path: Path) -> None:
    write_characters(
        data_set.parent / "people",
        tmp_path / "again",
        num_subjects=4,
        size=(32, 48),
        num_frames=4,
        truth="none",
        test_fraction=0.25,
        num_workers=2,
    )
    for record in read_index(data_set):
        assert (data_set / record.path).read_bytes() == (tmp_path / "again" / record.path).read_bytes()


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_interrupted_call_continues_and_gives_the_same_bytes(data_set: Path, tmp_path: Path) -> None:
    options = {"num_subjects": 4, "size": (32, 48), "num_frames": 4, "truth": "all", "test_fraction": 0.25, "num_workers": 1}

    def interrupt(_: str, done: int, __: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    people, out, unfinished = data_set.parent / "people", tmp_path / "again", tmp_path / ".again.unfinished"
    with pytest.raises(KeyboardInterrupt):
        write_characters(people, out, **options, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [unfinished.name]
    (unfinished / "clips" / "character0002").mkdir()  # begun
    times = {path.name: path.stat().st_mtime_ns for path in (unfinished / "clips" / "character0001").iterdir()}
    result = write_characters(people, out, **options)
    assert {path.name: path.stat().st_mtime_ns for path in (out / "clips" / "character0001").iterdir()} == times
    assert files_of(out) == files_of(data_set)
    assert set(result.visible) == {"wave left", "point"}
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_an_interrupted_call_is_not_continued_with_other_settings(data_set: Path, tmp_path: Path) -> None:
    options = {"num_takes": 1, "size": (32, 32), "num_frames": 3, "truth": "none", "num_workers": 1}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    people = data_set.parent / "people"
    with pytest.raises(KeyboardInterrupt):
        write_characters(people, tmp_path / "a", **options, num_subjects=2, progress=interrupt)
    for name in ("a", "b"):
        write_characters(people, tmp_path / name, **options, num_subjects=2, seed=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_transparent_clips_show_the_figure_with_alpha(data_set: Path, tmp_path: Path) -> None:
    options = {"num_subjects": 2, "num_takes": 1, "size": (32, 48), "num_frames": 4, "truth": "all", "num_workers": 1}
    people = data_set.parent / "people"
    for name, transparent in (("clear", True), ("full", False)):
        write_characters(people, tmp_path / name, **options, transparent=transparent)
    for record in read_index(tmp_path / "clear"):
        clear, full = (read_video(tmp_path / name / record.path, keep_alpha=True) for name in ("clear", "full"))
        truth = load_truth(truth_path(tmp_path / "clear" / record.path))
        assert (full[..., 3] == 255).all()
        inside = clear[..., 3] == 255
        assert np.array_equal(clear[inside], full[inside])
        assert (truth.figure == (clear[..., 3] > 127)).mean() > 0.95
        assert (clear[..., 3][~truth.figure] == 0).mean() > 0.9
    for wrong in ({"difficulty": "handheld"}, {"backgrounds": people}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            write_characters(people, tmp_path / "no", **options, **wrong, transparent=True)  # type: ignore[arg-type]


def test_mirrored_subjects_have_mirrored_labels(tmp_path: Path) -> None:
    """`Wave_Left` moves the arm outwards and `Wave_Right` before the body, so that its reach tells the action."""
    (tmp_path / "people").mkdir()
    for number in range(2):
        document = make_document(f"P{number}", (0.1, 0.5, 0.9 * number))
        document.json["animations"][2]["name"] = "Wave_Right"
        write_gltf(tmp_path / "people" / f"men-{number}.gltf", document)
    options = {"num_subjects": 8, "num_takes": 1, "size": 64, "num_frames": 3, "fps": 4, "truth": "all", "num_workers": 1}
    write_characters(tmp_path / "people", tmp_path / "data", **options)
    reach: dict[str, dict[str, float]] = defaultdict(dict)
    for record in read_index(tmp_path / "data"):
        figure = load_truth(truth_path(tmp_path / "data" / record.path)).figure
        reach[record.subject][record.label] = np.nonzero(figure[2] & ~figure[0])[1].mean() - np.nonzero(figure[0])[1].mean()
    outward = {max(clips, key=lambda label: abs(clips[label])): clips for clips in reach.values()}
    assert outward.keys() == {"wave left", "wave right"}  # some subjects are mirrored, some are not
    assert all((clips[label] > 0) == (label == "wave left") for label, clips in outward.items())


@pytest.mark.parametrize("difficulty", ["handheld", "entering"])
def test_hard_clips_begin_alike_and_move_everywhere(tmp_path: Path, difficulty: str) -> None:
    scene = make_scene(tmp_path, replace(EASY, difficulty=difficulty))
    clips = [scene.render(scene.figure.actions[name], TAKE, truth=True) for name in ("Point", "Wave_Left")]
    assert np.array_equal(clips[0][0][0], clips[1][0][0])
    truth = clips[0][1]
    assert truth is not None
    assert np.abs(truth.drift[-1]).max() > 0.3
    border = np.concatenate([truth.figure[0][0], truth.figure[0][-1], truth.figure[0][:, 0], truth.figure[0][:, -1]])
    assert border.any() == (difficulty == "entering")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ("dance",)}, "labels .*point, wave left.*dance"),
        ({"difficulty": "hard"}, "difficulty .*hard"),
        ({"size": (8, 64)}, "size .*8"),
        ({"num_subjects": 0}, "num_subjects .*0"),
        ({"backgrounds": "empty"}, "backgrounds .*empty"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    people = write_people(tmp_path / "people", 2)
    (tmp_path / "empty").mkdir()
    if "backgrounds" in options:
        options = {"backgrounds": tmp_path / "empty"}
    with pytest.raises(UserError, match=message):
        write_characters(people, tmp_path / "data", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "data").exists()


def test_files_that_cannot_be_used_or_split_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=r"no rigged, animated .gltf"):
        write_characters(tmp_path / "x", tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_characters(tmp_path / "nowhere", tmp_path / "data")
    write_gltf(tmp_path / "x" / "only.gltf", make_document("Ann", (0, 0, 0)))
    with pytest.raises(UserError, match="test_fraction"):
        write_characters(tmp_path / "x", tmp_path / "data", num_subjects=4)
