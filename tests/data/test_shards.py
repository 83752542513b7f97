"""Shards: written once, read in any order, bounded on the disk, and whole or named."""

import json
import logging
import sys
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfdm.config.video import Size
from lfdm.data.cache import open_cache
from lfdm.data.index import ClipRecord, read_index, write_index
from lfdm.data.shard_file import SHARD_LIST_NAME, ShardList
from lfdm.data.sharded_clips import SHARDS_AT_ONCE, ShardedClips
from lfdm.data.sharding import write_shards
from lfdm.data.training_clips import find_clips, shard_cache_dir
from lfdm.data.video import write_video
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders import remote
from lfdm.folders.remote import StoredFolder

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'lfdm[scale]'")

SHARD_MB = 0.03
"""About three of the clips below."""
NUM_CLIPS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty clips of noise of 2 to 4 frames, every third with alpha; two are for testing. Read only."""
    root, records = tmp_path_factory.mktemp("data"), []
    rng = np.random.default_rng(0)
    for i in range(NUM_CLIPS):
        shape = (2 + i % 3, 32, 48 if i % 2 else 32, 4 if i % 3 == 0 else 3)
        path, split = f"{i}.avi", "test" if i in (7, 30) else "train"
        write_video(root / path, rng.integers(0, 256, shape, dtype=np.uint8), fps=8)
        records.append(ClipRecord.describe(shape, path=path, label="ab"[i % 2], subject=str(i), split=split, fps=8))
    write_index(root, records)
    return root


@pytest.fixture(scope="module")
def shards(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `data`. Read only."""
    out = tmp_path_factory.mktemp("shards")
    write_shards(data, out, shard_mb=SHARD_MB, num_workers=1)
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep copies of shards in the test's folder, and do not wait for a network."""
    monkeypatch.setenv("LFDM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)


def clips_of(place: str | Path, *, keep_alpha: bool = False, cache_gb: float | None = None) -> ShardedClips:
    clips = find_clips(place, cache_gb).open(Size(32, 32), "pad", keep_alpha=keep_alpha)
    assert isinstance(clips, ShardedClips)
    return clips


def copied(shards: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("keep_alpha", [False, True])
def test_shards_hold_the_frames_that_a_training_sees_of_the_clips(data: Path, shards: Path, keep_alpha: bool) -> None:
    records = [record for record in read_index(data) if record.split == "train"]
    cache = open_cache(data, records, 32, "pad", keep_alpha=keep_alpha, num_workers=1)
    clips = clips_of(shards, keep_alpha=keep_alpha)
    assert len(clips) == len(cache) == NUM_CLIPS - 2
    assert clips.labels == cache.labels == ["a", "b"]
    assert clips.has_alpha() == cache.has_alpha() == keep_alpha
    assert len(clips.shard_sizes) > 15
    places = {record.path: index for index, record in enumerate(cache.records)}
    for index in range(len(clips)):
        other = places.pop(clips.set.values(index)["path"])
        assert (clips.label(index), clips.num_frames(index)) == (cache.label(other), cache.num_frames(other))
        assert clips.label_row(index) == cache.label_row(other)
        assert np.array_equal(clips.clip(index), cache.clip(other))
        found = clips.frames(index, [1, 0], np.random.default_rng(5))
        assert np.array_equal(found, cache.frames(other, [1, 0], np.random.default_rng(5)))
    assert places == {}


def test_writing_continues_where_it_ended(data: Path, shards: Path, tmp_path: Path) -> None:
    half = copied(shards, tmp_path / "half")
    whole = json.loads((half / SHARD_LIST_NAME).read_text())
    started = json.loads((half / SHARD_LIST_NAME).read_text())
    started["complete"], started["splits"]["test"] = False, {"shards": [], "labels": {}, "shapes": [], "has_alpha": False}
    (half / SHARD_LIST_NAME).write_text(json.dumps(started))
    (half / "test-00000.arrow").unlink()
    with pytest.raises(UserError, match="incomplete"):
        find_clips(half)
    before = {path.name: path.stat().st_mtime_ns for path in half.glob("*.arrow")}
    write_shards(data, half, shard_mb=SHARD_MB, num_workers=1)
    assert json.loads((half / SHARD_LIST_NAME).read_text()) == whole
    assert {name: (half / name).stat().st_mtime_ns for name in before} == before
    assert (half / "test-00000.arrow").read_bytes() == (shards / "test-00000.arrow").read_bytes()
    with pytest.raises(UserError, match="shard_mb"):
        write_shards(data, half, shard_mb=1, num_workers=1)


def test_broken_clips_are_left_out_and_named(data: Path, tmp_path: Path) -> None:
    folder = copied(data, tmp_path / "data")
    (folder / "3.avi").write_bytes(b"no video")
    (folder / "4.avi").unlink()
    found = write_shards(folder, tmp_path / "shards", num_workers=1)
    assert sorted(found.left_out) == ["3.avi", "4.avi"]
    assert "missing" in found.left_out["4.avi"]
    assert len(clips_of(tmp_path / "shards")) == NUM_CLIPS - 4


def test_damaged_clips_and_shards_are_named_and_the_next_clip_is_read(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(shards, tmp_path / "shards")
    files = [shard.file for shard in clips_of(folder).set.shards]
    sizes = clips_of(folder).shard_sizes
    (folder / files[0]).unlink()
    (folder / files[1]).write_bytes((folder / files[1]).read_bytes()[:-100])
    damaged = bytearray((folder / files[2]).read_bytes())
    damaged[len(damaged) // (2 * sizes[2])] ^= 255  # in the frames of its first clip
    (folder / files[2]).write_bytes(damaged)
    clips = clips_of(folder)
    start = sizes[0] + sizes[1]
    with caplog.at_level(logging.WARNING):
        assert [clips.usable(index) for index in (0, sizes[0], start, start + 1, 0)] == [start + 1] * 5
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert [name for name, message in zip(files[:3], messages, strict=True) if name not in message] == []
    assert "left out" in messages[2]
    last = len(clips) - 1
    (folder / files[-1]).unlink()
    assert clips_of(folder).usable(last) == start + 1  # from the beginning again


def test_copies_of_remote_shards_stay_below_the_limit(shards: Path) -> None:
    store = StoredFolder("memory://bounded")
    for path in shards.iterdir():
        if path.is_file():
            store.write(path.name, path.read_bytes())
    sizes = [shard.size for shard in clips_of(shards).set.shards]
    limit = sum(sorted(sizes)[-SHARDS_AT_ONCE:])
    assert limit < sum(sizes)
    clips, local = clips_of("memory://bounded", cache_gb=limit / 1e9), clips_of(shards)
    for index in np.random.default_rng(0).permutation(len(clips)).tolist():
        assert clips.usable(index) == index
        assert np.array_equal(clips.clip(index), local.clip(index))
        assert sum(path.stat().st_size for path in shard_cache_dir().rglob("*.arrow")) <= limit
    with pytest.raises(UserError, match=r"cache_gb must be at least .*; got 1e-05$"):
        clips_of("memory://bounded", cache_gb=1e-5)
    with pytest.raises(UserError, match="cache_gb has no effect"):
        clips_of(shards, cache_gb=1)


def test_a_damaged_copy_is_downloaded_again(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = StoredFolder("memory://damaged")
    for path in shards.iterdir():
        if path.is_file():
            store.write(path.name, path.read_bytes())
    clips = clips_of("memory://damaged")
    expected = clips.clip(0).copy()
    copy = next(shard_cache_dir().rglob("*.arrow"))
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // (2 * clips.shard_sizes[0])] ^= 255
    copy.write_bytes(damaged)
    again = clips_of("memory://damaged")
    with caplog.at_level(logging.WARNING):
        assert again.usable(0) == 0
    assert "again" in caplog.text
    assert np.array_equal(again.clip(0), expected)


class _DroppingHandler(SimpleHTTPRequestHandler):
    """Files with ranges; every second answer ends in the middle, and `refused` are refused."""

    answers = 0
    refused = 0

    def do_GET(self) -> None:
        kind = type(self)
        if kind.refused:
            kind.refused -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        content = path.read_bytes()[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        kind.answers += 1
        self.wfile.write(content[: len(content) // 2] if kind.answers % 2 else content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the class above
        """Keep the output of tests clean."""


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_DroppingHandler, directory=str(shards))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_connections_that_break_are_continued(server: str, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    _DroppingHandler.answers = _DroppingHandler.refused = 0
    with caplog.at_level(logging.WARNING):
        clips, local = clips_of(server), clips_of(shards)
        assert all(np.array_equal(clips.clip(index), local.clip(index)) for index in range(len(clips)))
    assert "connection broke" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"nowhere: no shards\.json"):
        find_clips(f"{server}/nowhere")


def test_a_network_that_fails_again_and_again_ends_the_reading(server: str) -> None:
    _DroppingHandler.refused = 0
    clips = clips_of(server)
    _DroppingHandler.refused = remote.TRIES
    with pytest.raises(UserError, match=f"{server}/train-.*503"):
        clips.usable(0)
    assert _DroppingHandler.refused == 0
    assert clips.usable(0) == 0
    with pytest.raises(UserError, match="web server cannot be written to"):
        StoredFolder(server).write("a", b"")


def test_the_package_that_a_url_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed; it is not in the extra `scale`
    with pytest.raises(MissingExtraError, match=r"^gs://clips/mine/shards\.json: .*gcsfs[^;]*$"):
        find_clips("gs://clips/mine")


def test_a_damaged_list_is_one_line(tmp_path: Path) -> None:
    for content, words in (("{", "damaged"), ('{"version": 0}', "another version"), ("[]", "damaged")):
        (tmp_path / SHARD_LIST_NAME).write_text(content)
        with pytest.raises(UserError, match=words):
            ShardList.read(StoredFolder(str(tmp_path)))


@pytest.mark.slow
def test_shards_in_a_bucket(data: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against moto's S3 server."""
    server_module = pytest.importorskip("moto.server", reason="needs moto: pip install 'lfdm[dev]'")
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'lfdm[scale]'")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ENDPOINT_URL", f"http://{host}:{port}"), ("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/clips", method="PUT")).close()
        with pytest.raises(FileNotFoundError, match="no shards"):
            find_clips("s3://clips/mine")
        write_shards(data, "s3://clips/mine", shard_mb=SHARD_MB, num_workers=1)
        clips, local = clips_of("s3://clips/mine"), clips_of(shards)
        assert clips.shard_sizes == local.shard_sizes
        assert all(np.array_equal(clips.clip(index), local.clip(index)) for index in range(len(clips)))
        with pytest.raises(FileNotFoundError, match="s3://nowhere"):
            write_shards(data, "s3://nowhere/mine", num_workers=1)
    finally:
        server.stop()
