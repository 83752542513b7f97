"""Full, read-only and limited disks: the message names file and disk, and nothing half written is left."""

import errno
from pathlib import Path

import pytest

from lfdm.folders.disk import DiskError, disk_error, naming_disk_errors
from lfdm.folders.files import replace_folder, write_bytes
from tests.full_disk import file_size_limit

LIMIT = 1000


def test_a_file_that_does_not_fit_is_named_and_the_old_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "wave.mp4"
    path.write_bytes(b"old")
    with file_size_limit(LIMIT), pytest.raises(DiskError, match=r"wave\.mp4 could not be written: .*ulimit -f") as raised:
        write_bytes(path, bytes(LIMIT + 1))
    assert raised.value.errno == errno.EFBIG
    assert "\n" not in str(raised.value)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"wave.mp4": b"old"}


def test_on_a_read_only_disk_the_file_is_named_and_not_the_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # also of a file that does not exist
    with pytest.raises(DiskError, match=r"/wave\.mp4 could not be written: the disk at .* is read-only"):
        write_bytes(tmp_path / "wave.mp4", b"new")


def test_a_folder_that_does_not_fit_is_named_and_not_the_temporary_one(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "small").write_bytes(b"1")
        write_bytes(folder / "large", bytes(LIMIT + 1))

    with file_size_limit(LIMIT), pytest.raises(DiskError) as raised:
        replace_folder(tmp_path / "run" / "model", write)
    assert str(raised.value).startswith(f"{tmp_path / 'run' / 'model'} could not be written")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space is left on the disk at / "), (errno.EDQUOT, "quota on the disk at /"), (errno.EROFS, "read-only")],
)
def test_the_message_names_disk_and_remedy(number: int, words: str) -> None:
    described = disk_error(OSError(number, "system's words"), "/not-there/wave.mp4")
    assert described is not None
    assert "/not-there/wave.mp4 could not be written" in str(described)
    assert words in str(described)
    assert "choose a place" in str(described)


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    assert disk_error(FileNotFoundError(errno.ENOENT, "gone"), tmp_path) is None
    with pytest.raises(FileNotFoundError, match="gone"), naming_disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")
