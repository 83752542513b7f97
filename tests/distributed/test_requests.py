"""Tables of requests."""

import json
from pathlib import Path

import pytest

from lfdm.distributed.requests import VideoRequest, group_requests, read_requests
from lfdm.errors import UserError


def table(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_csv_table_has_the_types_of_its_columns(tmp_path: Path) -> None:
    text = "image,condition,seed,guidance_scale,loop,fit,num_frames\na.png, wave ,3,2,yes,crop,\n"
    (row,) = read_requests(table(tmp_path, "r.csv", text))
    expected = VideoRequest(image="a.png", condition="wave", seed=3, guidance_scale=2.0, loop=True, fit="crop")
    assert row.request == expected
    assert row.number == 2


def test_a_parquet_table_of_pandas_has_gaps(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"image": ["a.png", "b.png"], "seed": [1, None], "condition": [None, "wave"]})
    frame.to_parquet(tmp_path / "r.parquet")
    requests = [row.request for row in read_requests(tmp_path / "r.parquet")]
    assert requests == [VideoRequest(image="a.png", seed=1), VideoRequest(image="b.png", condition="wave")]


def test_a_row_with_a_wrong_value_is_returned_with_its_error(tmp_path: Path) -> None:
    text = "image,seed,loop,fit\na.png,1,,\nb.png,many,,\n,3,,\nd.png,1,perhaps,\ne.png,-1,,\nf.png,,,bent\n"
    rows = read_requests(table(tmp_path, "r.csv", text))
    assert [row.request is None for row in rows] == [False, True, True, True, True, True]
    errors = " ".join(row.error or "" for row in rows)
    assert [word in errors for word in ("'many'", "no image", "'perhaps'", "-1", "'bent'")] == [True] * 5


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r.csv", "image,colour\na.png,red\n", "'colour'"),
        ("r.csv", "picture\na.png\n", "missing column image"),
        ("r.csv", "image\n", "no requests"),
        ("r.jsonl", '{"image": "a.png"}\n{"image": \n', "line 2"),
        ("r.jsonl", "[1]\n", "line 1"),
        ("r.jsonl", '{"image": "a.png", "steps": 3}\n', "'steps'"),
        ("r.parquet", "PAR1", "not a Parquet file"),
        ("r.xlsx", "", ".csv, .jsonl, .parquet"),
    ],
)
def test_what_is_no_table_is_one_error(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        read_requests(table(tmp_path, name, text))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_requests(tmp_path / "none.csv")


def test_identical_requests_are_one_and_equal_names_are_an_error(tmp_path: Path) -> None:
    lines = [{"image": "a.png"}, {"image": "a.png"}, {"image": "b.png", "name": "x"}, {"image": "c.png", "name": "X"}]
    rows = read_requests(table(tmp_path, "r.jsonl", "\n".join(map(json.dumps, lines))))
    assert [row.number for row in rows] == [1, 3, 4]
    assert rows[2].request is None
    assert rows[2].error is not None
    assert "row 3" in rows[2].error


def test_file_names_do_not_depend_on_the_rest_of_the_table() -> None:
    first = VideoRequest(image="photos/me.png", condition="raise arms", seed=4)
    other = VideoRequest(image="others/me.png", condition="raise arms", seed=4)
    assert first.file_stem.startswith("me-raise-arms-4-")
    assert first.file_stem != other.file_stem


def test_batches_hold_requests_of_equal_settings_in_order() -> None:
    plain = [VideoRequest(image="a.png", seed=seed) for seed in range(5)]
    longer = [VideoRequest(image="a.png", seed=seed, num_frames=9) for seed in range(2)]
    large = [VideoRequest(image="a.png", seed=seed, full_size=True) for seed in range(2)]
    mixed = [plain[0], longer[0], *plain[1:], large[0], longer[1], large[1]]
    assert group_requests(mixed, 3) == [plain[:3], plain[3:], longer, [large[0]], [large[1]]]
