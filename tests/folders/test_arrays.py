"""Archives of arrays: no code, no bombs."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfdm.errors import UserError
from lfdm.folders import arrays
from lfdm.folders.arrays import map_array, open_arrays


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('ran')",)


def test_arrays_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(3))
    with open_arrays(tmp_path / "a.npz") as stored:
        assert list(stored) == ["x"]
        np.testing.assert_array_equal(stored["x"], [0, 1, 2])


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([_Code()], dtype=object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(_Code()))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(UserError, match=name), open_arrays(tmp_path / name) as stored:
            stored["x"]


def test_archives_that_inflate_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, np.uint8))
    with pytest.raises(UserError, match=r"a\.npz: arrays of"), open_arrays(tmp_path / "a.npz") as stored:
        stored["x"]


@pytest.mark.parametrize("damage", ["no zip", "missing array", "shape beyond the data", "cut"])
def test_damaged_archives_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, y=np.zeros(3) if damage == "missing array" else np.zeros(0), x=np.zeros(3))
    if damage == "no zip":
        path.write_bytes(b"PK\3\4")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "shape beyond the data":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", header.getvalue() + bytes(24))
    with pytest.raises(UserError, match=r"a\.npz: not a readable"), open_arrays(path) as stored:
        stored["z" if damage == "missing array" else "x"]


def test_a_mapped_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "frames.u8"
    path.write_bytes(bytes(12))
    assert map_array(path, np.uint8, (3, 4)).shape == (3, 4)
    for shape in ((3, 5), (3, 3), (2**62, 1)):
        with pytest.raises(UserError, match=r"frames\.u8: damaged"):
            map_array(path, np.uint8, shape)
