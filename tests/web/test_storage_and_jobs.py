"""The only folder requests can name files in; jobs that end when nobody waits for them."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfdm.web.jobs import Finished, Jobs, Progress, Report
from lfdm.web.storage import Storage

HASH = "0" * 64


@pytest.fixture
def storage() -> Iterator[Storage]:
    made = Storage()
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
        with pytest.raises(ValueError, match="not on the server"):
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
    assert storage.num_files() == 0
    assert storage.megabytes() == 0


def test_a_job_reports_and_returns() -> None:
    def work(report: Report) -> str:
        for k in range(3):
            report(k, 3)
        return "made"

    async def collect() -> list[object]:
        return [update async for update in Jobs(1).run(work)]

    assert asyncio.run(collect()) == [Progress(0, 3), Progress(1, 3), Progress(2, 3), Finished("made")]


def test_an_error_in_a_job_is_that_of_the_caller() -> None:
    def work(_: Report) -> str:
        raise ValueError("no such label")

    async def collect() -> list[object]:
        return [update async for update in Jobs(1).run(work)]

    with pytest.raises(ValueError, match="no such label"):
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
