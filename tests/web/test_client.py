"""gradio's own client: the README's example, errors, progress, cancelling, a full queue."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError, extract_validation_message
from PIL import Image

from benchmarks.serving.server import API, GENERATE, Server, call
from lfdm.data.sound import has_sound
from lfdm.data.video import read_video, video_info
from lfdm.pipeline.pipeline import LatentFlowPipeline

README = Path(__file__).parents[2] / "README.md"
SHORT: dict[str, Any] = {"num_inference_steps": 2, "num_frames": 4}


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    opened = Client(server.url, verbose=False, download_files=tmp_path)
    yield opened
    opened.close()


def test_the_example_of_the_readme_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "gradio_client" in block)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:7860", server.url), names)
    assert len(read_video(names["made"]["videos"][0]["file"])) == 16
    assert len(read_video(names["moved"]["videos"][0]["file"])) == 16
    assert "'wave'" in capsys.readouterr().out


def test_videos_are_those_of_the_pipeline(client: Client) -> None:
    """Frame by frame but for the mp4's colours; and of strength 0 every frame is the picture."""
    made = client.predict(image="puppet-3", label="kick", seed=5, num_videos=2, **SHORT, api_name="/generate")["videos"]
    still = client.predict(image="puppet-3", label="kick", motion_strength=0, **SHORT, api_name="/generate")["videos"]
    pipe = LatentFlowPipeline.from_pretrained("puppets64")
    image = Path("src/lfdm/assets/puppets64/images/puppet-3.png")
    assert [video["title"] for video in made] == ["kick, seed 5", "kick, seed 6"]
    for seed, video in zip((5, 6), made, strict=True):
        expected = pipe(image, "kick", generator=seed, output_type="uint8", **SHORT).frames
        assert isinstance(expected, np.ndarray)
        got = read_video(video["file"])[:, 2::4, 2::4].astype(float)
        assert np.abs(got - expected[0]).mean() < 6
    frames = read_video(still[0]["file"]).astype(float)
    assert np.abs(frames - frames[:1]).max() < 8


def test_a_mix_and_no_label(client: Client) -> None:
    made = [
        client.predict(image="puppet-3", label=label, **SHORT, api_name="/generate")["videos"][0]
        for label in ("wave=0.5,kick=0.5", {"wave": 1, "kick": 1})
    ]
    assert [video["title"] for video in made] == ["wave=0.5,kick=0.5, seed 0", "wave=1,kick=1, seed 0"]
    one, other = (read_video(video["file"]) for video in made)
    assert np.array_equal(one, other)
    free = client.predict(image="puppet-3", unconditional=True, **SHORT, api_name="/generate")["videos"][0]
    assert free["title"] == "unconditional, seed 0"
    assert not np.array_equal(read_video(free["file"]), read_video(made[0]["file"]))


def test_full_size_videos_have_the_size_of_the_picture(client: Client, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "large.png")
    fields: dict[str, Any] = {"image": handle_file(str(tmp_path / "large.png")), "full_size": True}
    made = client.predict(**fields, label="wave", **SHORT, api_name="/generate")["videos"][0]
    info = video_info(made["file"])
    assert (info.width, info.height, made["num_frames"]) == (1000, 600, 4)
    with pytest.raises(AppError, match=r"full_size allows 3 megapixels in all; got 16 frames of 1000x600 \(9\.6"):
        client.predict(**fields, label="wave", num_frames=16, api_name="/generate")
    moved = client.predict(**fields, driving=handle_file(made["file"]), api_name="/transfer")["videos"][0]
    assert video_info(moved["file"]).width == 1000


def test_the_beginning_of_a_long_clip_is_used_with_its_sound(client: Client, long_clip: Path) -> None:
    for audio in (True, False):
        made = client.predict(image="puppet-2", driving=handle_file(str(long_clip)), audio=audio, api_name="/transfer")
        (video,) = made["videos"]
        assert video["num_frames"] == 40
        assert video["note"] == "The first 40 of the clip's 60 frames were used (1.7 s)."
        info = video_info(video["file"])
        assert (info.frames, info.fps) == (40, 24)
        assert has_sound(Path(video["file"])) == audio


def test_errors_are_messages(client: Client, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="label must be one of bow, clap"):
        client.predict(image="puppet-1", label="fly", api_name="/generate")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(AppError, match=r"broken\.png: broken or not a readable"):
        client.predict(image=handle_file(str(broken)), label="wave", api_name="/generate")


def test_refused_requests_give_the_client_a_message(client: Client) -> None:
    address = handle_file("https://example.org/a.png")
    with pytest.raises(AppError, match=r"^image: the file is not on the server.*addresses are not fetched"):
        client.predict(image=address, label="wave", api_name="/generate")
    with httpx.Client(base_url=client.src) as http:
        refused = http.post(f"{API}/call/generate", json={"data": [1, 2]})
    assert refused.status_code == 422
    assert "data must be a list of 15 values; got 2" in (extract_validation_message(refused) or "")


def test_a_job_tells_its_steps_and_can_be_cancelled(client: Client) -> None:
    job = client.submit(image="puppet-1", label="wave", num_inference_steps=100, api_name="/generate")
    deadline = time.monotonic() + 60
    while len(job.outputs()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    last: Any = job.outputs()[-1]
    assert re.fullmatch(r"\d+ of 100", last["status"])
    job.cancel()
    made: Any = client.predict(image="puppet-1", label="wave", **SHORT, api_name="/generate")
    assert len(made["videos"]) == 1


def test_a_client_beyond_the_queue_is_told_that_it_is_full(client: Client, server: Server) -> None:
    slow = {"data": list({**GENERATE, "num_inference_steps": 100}.values())}
    jobs = [client.submit(image="puppet-1", label="wave", num_inference_steps=100, api_name="/generate")]
    while not jobs[0].outputs():
        time.sleep(0.05)
    jobs += [client.submit(image="puppet-1", label="wave", num_inference_steps=100, api_name="/generate") for _ in range(4)]
    with httpx.Client(base_url=server.url, timeout=60) as http:
        while http.get(f"{API}/queue/status").json()["queue_size"] < 4:
            time.sleep(0.05)
        refused = http.post(f"{API}/call/generate", json=slow)
        assert refused.status_code == 503
        assert refused.json()["detail"] == "busy: 4 requests are waiting; try again in a minute"
        assert refused.headers["retry-after"] == "60"
        with pytest.raises(QueueError, match="full"):
            client.predict(image="puppet-1", label="wave", api_name="/generate")
        for job in jobs:
            job.cancel()
        assert call(http, "generate", GENERATE).event == "complete"


@pytest.mark.slow
def test_temporary_files_go_by_age(client: Client, server: Server) -> None:
    client.predict(image="puppet-1", label="wave", **SHORT, api_name="/generate")
    assert server.num_files() >= 4
    deadline = time.monotonic() + 60  # they are kept for 15 s
    while server.num_files() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert server.num_files() == 0
