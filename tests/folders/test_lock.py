"""Locks: the second run is refused, whoever holds the first, and a dead process holds nothing."""

import errno
import multiprocessing
import os
import signal
import threading
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import FileLock

from lfdm.errors import UserError
from lfdm.folders.lock import LOCK_NAME, build_once, locked

CONTEXT = multiprocessing.get_context("spawn")
SECONDS = 60


def hold(folder: Path, holding: Event) -> None:
    with locked(folder):
        (folder / "state").touch()
        holding.set()
        threading.Event().wait(SECONDS)


def test_a_second_run_is_refused_and_told_which_process_holds_the_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match=rf"{tmp_path.name} is in use by process {os.getpid()} on "),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        assert (tmp_path / LOCK_NAME).is_file()


@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_left_of_a_lock(tmp_path: Path, inside: bool) -> None:
    with locked(tmp_path / "new", inside=inside):
        assert len(list(tmp_path.rglob("*.lock"))) == 1
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new", inside=inside, hold=False):
        assert list(tmp_path.iterdir()) == []


def test_folders_that_existed_or_are_filled_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"), locked(tmp_path / "new"):
        (tmp_path / "new" / "results").touch()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["new", "new/results", "old"]


@pytest.mark.slow  # starts a process
def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    holding = CONTEXT.Event()
    child = CONTEXT.Process(target=hold, args=(tmp_path, holding))
    child.start()
    assert holding.wait(SECONDS)
    with pytest.raises(UserError, match=f"process {child.pid}"), locked(tmp_path):
        pass
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_disk_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "state").touch()
    assert "disk without locks" in caplog.text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state"]


def test_a_folder_is_built_once_and_others_wait_for_it(tmp_path: Path) -> None:
    begun, built = threading.Event(), []

    def build(temporary: Path) -> None:
        begun.set()
        threading.Event().wait(0.2)
        built.append(temporary)
        (temporary / "whole").touch()

    folder = tmp_path / ".cache" / "one"
    first = threading.Thread(target=build_once, args=(folder, build))
    first.start()
    assert begun.wait(SECONDS)
    build_once(folder, build)
    assert (folder / "whole").exists()
    first.join()
    assert len(built) == 1
    assert [entry.name for entry in folder.parent.iterdir()] == ["one"]


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".one.12345678.tmp").mkdir()
    (tmp_path / ".two.12345678.tmp").mkdir()
    build_once(tmp_path / "one", lambda temporary: (temporary / "whole").touch())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".two.12345678.tmp", "one"]


def test_a_failed_builder_leaves_nothing(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        (temporary / "half").touch()
        raise OSError

    folder = tmp_path / ".cache" / "one"
    with pytest.raises(OSError):
        build_once(folder, fail)
    assert list(tmp_path.iterdir()) == []
    build_once(folder, lambda temporary: (temporary / "whole").touch())
    build_once(folder, fail)
    assert [entry.name for entry in folder.iterdir()] == ["whole"]
