"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest

from lfdm.errors import UserError
from lfdm.folders.files import build_once, check_parents, replace_folder, replacing_folder, temporary_path, write_bytes


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


def test_a_cache_is_built_once_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "one"

    def fail(temporary: Path) -> None:
        (temporary / "half").touch()
        raise OSError

    with pytest.raises(OSError):
        build_once(folder, fail)
    assert list(tmp_path.iterdir()) == []
    build_once(folder, lambda temporary: (temporary / "whole").touch())
    build_once(folder, fail)
    assert [entry.name for entry in folder.iterdir()] == ["whole"]

    def overtaken(temporary: Path) -> None:
        (temporary / "same").touch()
        build_once(tmp_path / ".cache" / "two", lambda quicker: (quicker / "same").touch())

    build_once(tmp_path / ".cache" / "two", overtaken)
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["one", "two"]


def test_a_file_among_the_parents_of_a_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_parents(tmp_path / "new" / "folder" / "clip.mp4")
    with pytest.raises(UserError, match=r"clip\.mp4 cannot be created: .*file is a file"):
        check_parents(tmp_path / "file" / "folder" / "clip.mp4")
