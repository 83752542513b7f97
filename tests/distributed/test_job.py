"""Batch jobs in one process."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lfdm.cli import COMMANDS
from lfdm.cli.console import run
from lfdm.data.video import read_video
from lfdm.distributed.job import Batch, run_batch, run_here
from lfdm.distributed.requests import Row, VideoRequest, read_requests
from lfdm.distributed.results import MANIFEST, Result
from lfdm.distributed.worker import BatchSettings, VideoWorker
from lfdm.errors import UserError
from lfdm.folders.remote import StoredFolder
from lfdm.pipeline.pipeline import LatentFlowPipeline


def rows_of(*requests: dict[str, Any]) -> list[Row]:
    return [Row(i, VideoRequest(**{"num_inference_steps": 2, **one}), one) for i, one in enumerate(requests, 1)]


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]


def settings_of(model: Path, pictures: Path, **options: Any) -> BatchSettings:
    return BatchSettings(**{"model": str(model), "out": str(pictures / "out"), "base": str(pictures), "batch_size": 2, **options})


def test_every_request_has_its_video_and_its_line(model: Path, pictures: Path) -> None:
    rows = rows_of(
        {"image": "a.png", "condition": "wave", "seed": 1, "name": "first"},
        {"image": "b.png", "condition": "jump=0.5,wave=0.5", "guidance_scale": 2.0},
        {"image": "c.png", "condition": "wave", "fit": "native", "num_frames": 6, "loop": True},
        {"image": "b.png", "full_size": True, "motion_strength": 0.5},
        {"image": "b.png", "motion_mask": "b.png"},
    )
    summary = run_batch(rows, settings_of(model, pictures), run_here("cpu"))
    assert (summary.videos, summary.earlier, summary.failed) == (5, 0, 0)
    records = manifest(pictures / "out")
    assert [record["row"] for record in records] == [1, 2, 3, 4, 5]
    assert records[0]["file"] == "first.mp4"
    assert records[1]["request"]["condition"] == "jump=0.5,wave=0.5"
    shapes = [read_video(pictures / "out" / record["file"]).shape for record in records]
    assert shapes == [(4, 32, 32, 3), (4, 32, 32, 3), (6, 32, 48, 3), (4, 40, 40, 3), (4, 32, 32, 3)]


def test_a_video_is_the_one_of_a_single_call(model: Path, pictures: Path) -> None:
    rows = rows_of(
        {"image": "a.png", "condition": "wave", "seed": 5, "name": "x"}, {"image": "b.png", "condition": "jump", "seed": 6}
    )
    run_batch(rows, settings_of(model, pictures, file_format="apng"), run_here("cpu"))
    pipe = LatentFlowPipeline.from_pretrained(str(model))
    single = pipe(pictures / "a.png", "wave", num_inference_steps=2, generator=5, output_type="uint8").frames
    assert isinstance(single, np.ndarray)
    difference = np.abs(read_video(pictures / "out" / "x.apng").astype(int) - single[0])
    assert difference.max() <= 1  # a batch and a single call agree to 1e-4


def test_failed_requests_do_not_stop_the_rest_and_are_tried_again(model: Path, pictures: Path) -> None:
    (pictures / "torn.png").write_bytes((pictures / "a.png").read_bytes()[:100])
    rows = rows_of(
        {"image": "a.png", "condition": "wave"},
        {"image": "none.png", "condition": "wave"},
        {"image": "a.png", "condition": "fly"},
        {"image": "torn.png", "condition": "jump"},
        {"image": "a.png", "condition": "wave", "num_frames": -1},
        {"image": "b.png", "condition": "jump"},
    )
    rows.append(Row(7, None, {"seed": "x"}, "no image"))
    settings = settings_of(model, pictures, batch_size=8)
    summary = run_batch(rows, settings, run_here("cpu"))
    assert (summary.videos, summary.failed) == (2, 5)
    errors = [record["error"] for record in manifest(pictures / "out")]
    assert [error is None for error in errors] == [True, False, False, False, False, True, False]
    assert [word in error for word, error in zip(("none.png", "'fly'", "torn.png", "-1"), errors[1:5], strict=True)] == [True] * 4
    (pictures / "none.png").write_bytes((pictures / "a.png").read_bytes())
    again = run_batch(rows, settings, run_here("cpu"))
    assert (again.videos, again.earlier, again.failed) == (3, 2, 4)


def test_a_job_that_was_stopped_is_continued_bit_for_bit(model: Path, pictures: Path) -> None:
    rows = rows_of(*({"image": "a.png", "condition": "wave", "seed": seed} for seed in range(7)))
    whole = settings_of(model, pictures, out=str(pictures / "whole"), batch_size=3)
    run_batch(rows, whole, run_here("cpu"))

    def stopping(settings: BatchSettings, batches: Sequence[Batch]) -> Iterator[Sequence[Result]]:
        worker = VideoWorker(settings, "cpu")
        yield worker.make(batches[0].requests, batches[0].wanted)
        yield worker.make(batches[1].requests, batches[1].wanted[:1])  # one of its videos is there, two are not
        raise KeyboardInterrupt

    settings = settings_of(model, pictures, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        run_batch(rows, settings, stopping)
    assert len(manifest(pictures / "out")) == 4
    summary = run_batch(rows, settings, run_here("cpu"))
    assert (summary.videos, summary.earlier) == (7, 4)
    for path in (pictures / "whole").glob("*.mp4"):
        assert path.read_bytes() == (pictures / "out" / path.name).read_bytes()
    assert len(list((pictures / "out").glob("*.mp4"))) == 7


def test_a_batch_that_does_not_fit_into_memory_is_halved(model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    sample = VideoWorker._sample

    def limited(self: VideoWorker, group: Sequence[VideoRequest], images: list[np.ndarray]) -> Any:
        sizes.append(len(group))
        if len(group) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return sample(self, group, images)

    monkeypatch.setattr(VideoWorker, "_sample", limited)
    rows = rows_of(*({"image": "a.png", "condition": "wave", "seed": seed} for seed in range(4)))
    summary = run_batch(rows, settings_of(model, pictures, batch_size=4), run_here("cpu"))
    assert summary.videos == 4
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_an_error_of_ours_is_recorded_and_logged(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(VideoWorker, "_sample", lambda *_: 1 / 0)
    summary = run_batch(rows_of({"image": "a.png"}), settings_of(model, pictures), run_here("cpu"))
    assert summary.failed == 1
    assert manifest(pictures / "out")[0]["error"].startswith("error in lfdm: ZeroDivisionError")
    assert "Traceback" in caplog.text


def test_a_folder_of_other_settings_is_not_mixed_with(model: Path, pictures: Path) -> None:
    rows = rows_of({"image": "a.png"})
    run_batch(rows, settings_of(model, pictures), run_here("cpu"))
    with pytest.raises(UserError, match="file_format 'mp4'; got 'gif'"):
        run_batch(rows, settings_of(model, pictures, file_format="gif"), run_here("cpu"))


def test_a_wrong_model_leaves_no_folder(pictures: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        run_batch(rows_of({"image": "a.png"}), settings_of(Path("./nowhere"), pictures), run_here("cpu"))
    assert not (pictures / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("file_format", "avi"), ("scale", 99), ("fps", -1.0)])
def test_wrong_settings_are_named(model: Path, pictures: Path, option: str, value: object) -> None:
    with pytest.raises(UserError, match=option):
        settings_of(model, pictures, **{option: value})


class _FlakyHandler(http.server.SimpleHTTPRequestHandler):
    """Drops the first connection of every path."""

    seen: set[str] = set()  # noqa: RUF012 - shared by all requests of the test

    def do_GET(self) -> None:
        if self.path not in self.seen:
            self.seen.add(self.path)
            self.connection.close()
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - the base's names


def test_images_come_from_urls_and_results_go_to_a_bucket(model: Path, pictures: Path) -> None:
    handler = functools.partial(_FlakyHandler, directory=str(pictures))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        rows = rows_of({"image": f"{url}/a.png", "name": "a"}, {"image": f"{url}/none.png"}, {"image": "nofs://x/a.png"})
        settings = settings_of(model, pictures, out="memory://results")
        summary = run_batch(rows, settings, run_here("cpu"))
        server.shutdown()
    assert (summary.videos, summary.failed) == (1, 2)
    folder = StoredFolder("memory://results")
    assert folder.read("a.mp4")
    records = [json.loads(line) for line in (folder.read(MANIFEST) or b"").splitlines()]
    assert "none.png" in records[1]["error"]
    assert "nofs://x/a.png" in records[2]["error"]


def test_a_parquet_table_has_a_parquet_manifest(model: Path, pictures: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist([{"image": "a.png", "seed": 1}, {"image": "none.png", "seed": 2}])
    parquet.write_table(table, pictures / "r.parquet")
    run_batch(read_requests(pictures / "r.parquet"), settings_of(model, pictures), run_here("cpu"), parquet=True)
    rows = parquet.read_table(pictures / "out" / "manifest.parquet").to_pylist()
    assert [row["image"] for row in rows] == ["a.png", "none.png"]
    assert rows[0]["file"] is not None
    assert "none.png" in rows[1]["error"]


def test_the_command_makes_continues_and_reports(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    (pictures / "r.csv").write_text("image,condition,num_inference_steps\na.png,wave,1\nnone.png,wave,1\nb.png,fly,1\n")
    command = ["batch", "r.csv", "--out", "out", "--model", str(model)]
    assert run(COMMANDS, command, "test") == 2
    captured = capsys.readouterr()
    assert captured.out == "out: 1 of 3 videos\n"
    assert "2 of 3 requests failed; out/manifest.jsonl" in captured.err
    (pictures / "r.csv").write_text("image,condition,num_inference_steps\na.png,wave,1\n")
    assert run(COMMANDS, command, "test") == 0
    assert capsys.readouterr().out == "out: 1 of 1 videos (1 of an earlier run)\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cpus-per-worker", "2"], "--cpus-per-worker"),
        (["--ray", "auto", "--device", "cpu"], "--device"),
        (["--batch-size", "0"], "batch_size"),
    ],
)
def test_options_without_effect_are_refused(
    pictures: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    (pictures / "r.csv").write_text("image\na.png\n")
    assert run(COMMANDS, ["batch", str(pictures / "r.csv"), "--out", str(pictures / "out"), *options], "test") == 2
    assert words in capsys.readouterr().err


def test_a_coloured_mask_counts_as_in_a_single_call(model: Path, pictures: Path) -> None:
    blue = np.zeros((32, 32, 3), np.uint8)
    blue[:, 16:] = (0, 0, 255)
    Image.fromarray(blue).save(pictures / "mask.png")
    rows = rows_of({"image": "a.png", "condition": "wave", "seed": 5, "name": "x", "motion_mask": "mask.png"})
    run_batch(rows, settings_of(model, pictures, file_format="apng"), run_here("cpu"))
    pipe = LatentFlowPipeline.from_pretrained(str(model))
    mask = pictures / "mask.png"
    single = pipe(pictures / "a.png", "wave", num_inference_steps=2, generator=5, motion_mask=mask, output_type="uint8").frames
    assert isinstance(single, np.ndarray)
    assert np.abs(read_video(pictures / "out" / "x.apng").astype(int) - single[0]).max() == 0
