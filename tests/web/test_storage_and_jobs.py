"""Files that requests may name, and jobs that stop when nobody waits for them."""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from lfdm.errors import UserError
from lfdm.web.gate import Gate
from lfdm.web.jobs import Finished, JobProgress, Jobs, Report
from lfdm.web.limits import ServeLimits
from lfdm.web.storage import Storage

HASH = "0" * 64


@pytest.fixture
def storage() -> Iterator[Storage]:
    made = Storage(1)
    yield made
    made.close()


def upload(storage: Storage, name: str = "a.png") -> Path:
    path = storage.root / HASH / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_uploads_and_results_are_found_and_nothing_else(storage: Storage, tmp_path: Path) -> None:
    mine, result = upload(storage), storage.new_result() / "a.mp4"
    result.write_bytes(b"x")
    assert storage.find(str(mine)) == mine
    assert storage.find(str(result)) == result
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"x")
    link, folder_link = mine.with_name("link.png"), storage.root / ("1" * 64)
    link.symlink_to(outside)
    folder_link.symlink_to(tmp_path)
    (storage.root / "loose.png").write_bytes(b"x")
    refused: list[object] = [
        None,
        3,
        "",
        ".",
        str(outside),
        str(link),
        str(folder_link / "secret.png"),
        str(storage.root / "loose.png"),
    ]
    refused += [
        str(mine.parent),
        f"{mine.parent}/../{HASH}/a.png",
        f"{mine}\0",
        "a" * 5000,
        str(mine.with_name("b" * 300)),
        f"file://{mine}",
    ]
    for path in refused:
        with pytest.raises(UserError, match="not on the server"):
            storage.find(path)


def test_files_are_removed_by_age_since_their_last_use(storage: Storage) -> None:
    old, used, fresh = upload(storage, "old.png"), upload(storage, "used.png"), storage.new_result() / "fresh.mp4"
    fresh.write_bytes(b"x")
    long_ago = time.time() - 100
    for path in (old, used):
        os.utime(path, (long_ago, long_ago))
    storage.find(str(used))
    storage.remove_old(50)
    assert not old.exists()
    assert used.exists()
    assert fresh.exists()
    for path in (used, fresh, used.parent, fresh.parent, fresh.parent.parent):
        os.utime(path, (long_ago, long_ago))
    storage.remove_old(50)
    assert not list(storage.root.rglob("*.*"))


def test_what_a_job_has_written_stays_while_it_runs_and_counts_as_used_at_its_end(storage: Storage) -> None:
    folder = storage.new_result()
    with storage.held(folder):
        video = store(folder / "a.mp4", 0.8, seconds_ago=1000)
        os.utime(folder, (0, 0))
        storage.remove_old(50)
        with pytest.raises(UserError, match="disk space"):
            storage.make_room(0.5)
        assert video.exists()
    storage.remove_old(50)
    assert video.exists()
    os.utime(video, (0, 0))
    storage.remove_old(50)
    assert not video.exists()


def test_what_two_jobs_read_stays_until_both_have_ended(storage: Storage) -> None:
    folder = storage.new_result()
    video = store(folder / "a.mp4", 0.1, seconds_ago=0)
    with storage.held(folder):
        with storage.held(folder):
            pass
        for path in (video, folder):
            os.utime(path, (0, 0))
        storage.remove_old(50)
        assert video.exists()


def store(path: Path, megabytes: float, seconds_ago: float) -> Path:
    path.write_bytes(bytes(int(megabytes * 1e6)))
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return path


def test_results_and_uploads_together_stay_below_the_limit_the_least_recently_used_go_first(storage: Storage) -> None:
    picture = store(upload(storage), 0.2, seconds_ago=900)
    videos = []
    for k in range(20):
        folder = storage.new_result()
        videos += [store(folder / name, 0.04, seconds_ago=800 - 10 * k) for name in ("a.mp4", "a-video.webp")]
        assert sum(file.stat().st_size for file in storage.root.rglob("*.*")) <= 1e6
    assert not picture.exists()
    kept = [video.exists() for video in videos]
    assert kept == sorted(kept)  # all before the oldest that is left are gone
    assert 16 < sum(kept) < len(kept)


def test_a_full_disk_counts_as_the_limit_does(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    old = store(upload(storage), 0.2, seconds_ago=900)
    free = types.SimpleNamespace(free=0.4e6)
    monkeypatch.setattr("lfdm.web.storage.shutil.disk_usage", lambda _: free)
    storage.make_room(0.3)
    assert old.exists()
    storage.make_room(0.5)  # fits once the old file has gone
    assert not old.exists()
    free.free = 0.1e6
    with pytest.raises(UserError, match="disk space"):
        storage.make_room(0.3)


def test_what_was_just_used_is_not_removed_for_something_new(storage: Storage) -> None:
    result, old = storage.new_result(), storage.new_result()
    video, sheet = store(result / "a.mp4", 0.4, seconds_ago=700), store(result / "a.webp", 0.4, seconds_ago=700)
    other = store(old / "a.mp4", 0.19, seconds_ago=600)
    storage.find(str(video))  # a page gets it
    storage.new_result()
    assert not other.exists()
    assert video.exists()
    assert sheet.exists()
    with pytest.raises(UserError, match=r"busy: .* disk space .* try again"):
        storage.make_room(0.5)
    assert video.exists()


def test_files_may_expire_while_room_is_made(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    expired, kept = upload(storage), storage.new_result() / "a.mp4"
    kept.write_bytes(b"x")
    listed = storage._files

    def expiring() -> Iterator[Path]:
        for file in listed():
            if file == expired:
                file.unlink()
            yield file

    monkeypatch.setattr(storage, "_files", expiring)
    assert storage.new_result().is_dir()
    assert kept.exists()


def test_an_upload_makes_room_or_is_told_that_the_server_is_busy(storage: Storage) -> None:
    limits = ServeLimits(upload_megabytes=0.5, storage_megabytes=1)
    gate = Gate(Response("taken"), {}, {}, limits, storage)

    async def send_picture() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://server") as client:
            return await client.post("/gradio_api/upload", files={"files": ("a.png", b"x")})

    old, new = (store(storage.new_result() / "a.mp4", 0.45, seconds) for seconds in (100, 1))
    assert asyncio.run(send_picture()).text == "taken"
    assert not old.exists()
    store(upload(storage), 0.1, 1)
    refused = asyncio.run(send_picture())
    assert refused.status_code == 503
    assert refused.json()["detail"] == "busy: the server's disk space is used up; try again in a few minutes"
    assert new.exists()


def test_the_folder_of_a_killed_server_is_removed_by_the_next_and_that_of_a_running_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    running = Storage(1)
    script = "import os; from lfdm.web.storage import Storage; s = Storage(1); (s.root / 'a').touch(); os._exit(9)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 9
    assert len(list(tmp_path.glob("lfdm-serve-*"))) == 2
    other = tmp_path / "lfdm-serve-notes"  # without a lock: not a server's
    other.mkdir()
    Storage(1).close()
    assert sorted(tmp_path.glob("lfdm-serve-*")) == sorted([running.root, other])
    running.close()
    assert list(tmp_path.iterdir()) == [other]


def test_a_job_that_would_end_the_process_is_an_error_and_the_next_one_runs() -> None:
    def dies(_: Report) -> None:
        raise SystemExit(1)

    async def collect() -> list[object]:
        jobs = Jobs(1)
        with pytest.raises(RuntimeError, match="SystemExit"):
            _ = [update async for update in jobs.run(dies)]
        return [update async for update in jobs.run(lambda _: "made")]

    assert asyncio.run(collect()) == [Finished("made")]


def test_a_job_reports_and_returns() -> None:
    def work(report: Report) -> str:
        for k in range(3):
            report(k, 3)
        return "made"

    async def collect() -> list[object]:
        return [update async for update in Jobs(1).run(work)]

    assert asyncio.run(collect()) == [JobProgress(0, 3), JobProgress(1, 3), JobProgress(2, 3), Finished("made")]


def test_an_error_in_a_job_is_that_of_the_caller() -> None:
    def work(_: Report) -> str:
        raise UserError("no such label")

    async def collect() -> list[object]:
        return [update async for update in Jobs(1).run(work)]

    with pytest.raises(UserError, match="no such label"):
        asyncio.run(collect())


def test_a_closed_job_stops_at_its_next_step_and_one_that_waits_never_starts() -> None:
    steps: list[int] = []
    ended, waited = threading.Event(), threading.Event()

    def work(report: Report) -> None:
        try:
            for k in range(10_000):
                steps.append(k)
                report(k, 10_000)
                time.sleep(0.01)
        finally:
            ended.set()

    async def start_two_and_leave() -> None:
        jobs = Jobs(1)
        first, second = jobs.run(work), jobs.run(lambda _: waited.set())
        await anext(first)
        second_task = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0.05)
        second_task.cancel()
        await asyncio.gather(second_task, return_exceptions=True)
        await first.aclose()
        jobs.close()

    asyncio.run(start_two_and_leave())
    assert ended.wait(5)
    assert len(steps) < 100
    assert not waited.is_set()


def test_no_more_jobs_run_at_once_than_allowed() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(_: Report) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    async def all_at_once() -> None:
        jobs = Jobs(2)

        async def one() -> None:
            async for _ in jobs.run(work):
                pass

        await asyncio.gather(*(one() for _ in range(10)))

    asyncio.run(all_at_once())
    assert most == 2
