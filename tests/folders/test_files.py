"""Files and folders that appear whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from lfdm.errors import UserError
from lfdm.folders.files import (
    check_parents,
    distinct_file_names,
    expand_home,
    recover,
    remove_leftovers,
    replace_folder,
    replaced_input,
    replacing_folder,
    temporary_path,
    write_bytes,
)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_bytes(tmp_path / "folder", b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("name", ["clip.avi", "x" * 255, "é" * 127, "😀" * 63])
def test_a_temporary_name_is_hidden_free_and_never_too_long(tmp_path: Path, name: str) -> None:
    first, second = (temporary_path(tmp_path / name) for _ in range(2))
    assert first.parent == tmp_path
    assert first.name.startswith(".")
    assert first != second
    first.touch()  # OSError for over 255 bytes


def test_a_folder_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with replacing_folder(target) as temporary:
        (temporary / "a").touch()
        assert not target.exists()

    def stop(temporary: Path) -> None:
        (temporary / "b").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(target, stop)
    assert [entry.name for entry in target.iterdir()] == ["a"]
    with replacing_folder(target) as temporary:
        (temporary / "c").touch()
    assert [entry.name for entry in target.iterdir()] == ["c"]
    assert [entry.name for entry in target.parent.iterdir()] == ["folder"]
    with pytest.raises(FileExistsError, match="c is a file"), replacing_folder(target / "c"):
        pass


def test_the_target_of_a_link_is_replaced_and_a_failed_rename_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")
    replace_folder(tmp_path / "link", lambda folder: (folder / "new").touch())
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]

    rename, calls = Path.rename, []

    def fails_the_second_time(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("no space")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_the_second_time)
    with pytest.raises(OSError, match="no space"):
        replace_folder(tmp_path / "real", lambda folder: (folder / "newer").touch())
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


@pytest.mark.parametrize("put_back", [True, False])
def test_what_a_killed_process_left_half_done_is_undone(tmp_path: Path, put_back: bool) -> None:
    folder, old = tmp_path / "data", tmp_path / ".data.12345678.old"
    for path in (old, tmp_path / ".data.87654321.tmp", tmp_path / ".data2.12345678.tmp"):
        path.mkdir()
    (old / "before").touch()
    if not put_back:
        folder.mkdir()
    recover(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data2.12345678.tmp", "data"]
    assert (folder / "before").exists() == put_back


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not looked up on Windows")
def test_temporary_files_of_dead_processes_are_removed_and_others_kept(tmp_path: Path) -> None:
    make = (
        "import sys; from pathlib import Path; from lfdm.folders.files import temporary_path\n"
        "out = Path(sys.argv[1])\n"
        "temporary_path(out / 'wave.mp4').touch(); temporary_path(out / 'frames').mkdir()\n"
        "for name in ('moved', 'kept'): (temporary_path(out / name).with_suffix('.old')).mkdir()"
    )
    subprocess.run([sys.executable, "-c", make, str(tmp_path)], check=True)
    (tmp_path / "kept").mkdir()
    running = temporary_path(tmp_path / "wave.mp4")
    elsewhere = tmp_path / ".wave.mp4.ffffff-4000000.12345678.tmp"
    for path in (running, elsewhere, tmp_path / ".notes.tmp"):
        path.touch()
    assert len(list(tmp_path.iterdir())) == 8
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {running.name, elsewhere.name, ".notes.tmp", "moved", "kept"}
    remove_leftovers(tmp_path / "missing")


def test_a_file_among_the_parents_of_a_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_parents(tmp_path / "new" / "folder" / "clip.mp4")
    with pytest.raises(UserError, match=r"clip\.mp4 cannot be created: .*file is a file"):
        check_parents(tmp_path / "file" / "folder" / "clip.mp4")


def test_a_target_that_would_replace_an_input_is_found(tmp_path: Path) -> None:
    clip, frames, other = tmp_path / "clip.mp4", tmp_path / "frames", tmp_path / "other.mp4"
    for path in (clip, other):
        path.touch()
    frames.mkdir()
    frame = frames / "frame-00000.png"
    frame.touch()
    soft, hard, linked = tmp_path / "soft.mp4", tmp_path / "hard.mp4", tmp_path / "linked"
    soft.symlink_to(clip)
    hard.hardlink_to(clip)
    linked.mkdir()
    (linked / "first.png").symlink_to(frame)
    inputs = [tmp_path / "missing.png", clip, frames]
    assert replaced_input(tmp_path / "frames" / ".." / "clip.mp4", inputs) == clip
    assert replaced_input(tmp_path / "new" / ".." / "clip.mp4", inputs) == clip  # a folder that writing would make
    assert replaced_input(soft, inputs) == clip
    assert replaced_input(hard, inputs) == clip
    assert replaced_input(clip, [soft]) == soft
    assert replaced_input(frames, inputs) == frames
    assert replaced_input(frame, inputs) == frames
    assert replaced_input(frames, [frame]) == frame
    assert replaced_input(frames, [linked]) == linked
    assert replaced_input(other, inputs) is None
    assert replaced_input(tmp_path / "missing.png", inputs) is None
    assert replaced_input(frames / "new.mp4", inputs) is None


def test_names_that_differ_only_in_replaced_characters_or_capitals_stay_apart() -> None:
    assert distinct_file_names(["a;b", "a.b", "wave", "a-b-2", "WAVE", "?"]) == [
        "a-b",
        "a-b-2",
        "wave",
        "a-b-2-2",
        "WAVE-2",
        "video",
    ]


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/a.png") == tmp_path / "a.png"
    assert expand_home(Path("~")) == tmp_path
    for name in ("~draft-of-nobody.png", "./a~", "x/~/y", "/~"):
        assert expand_home(name) == Path(name)
