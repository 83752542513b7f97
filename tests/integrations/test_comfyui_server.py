"""The example workflows in a running ComfyUI, whose address is in `LFDM_COMFYUI`; see integrations/comfyui/README.md."""

import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lfdm.pipeline.pipeline import LatentFlowPipeline

ADDRESS = os.environ.get("LFDM_COMFYUI", "").rstrip("/")
ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "integrations/comfyui/example_workflows"
PUPPET = ROOT / "src/lfdm/assets/puppets64/images/puppet-1.png"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
TIMEOUT = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ADDRESS, reason="needs a running ComfyUI with our nodes: LFDM_COMFYUI=http://127.0.0.1:8188"),
]


def get(path: str) -> bytes:
    with urllib.request.urlopen(f"{ADDRESS}{path}", timeout=60) as response:
        return response.read()


def post(path: str, body: bytes, kind: str) -> Any:
    request = urllib.request.Request(f"{ADDRESS}{path}", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def upload(file: Path) -> None:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{file.name}"\r\n\r\n'
    body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    assert post("/upload/image", body, f"multipart/form-data; boundary={boundary}")["name"].startswith(file.stem)


def to_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a workflow as the page sends it to the server: values and connections of each node by name."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        form = json.loads(get(f"/object_info/{node['type']}"))[node["type"]]["input"]
        values, inputs = list(node["widgets_values"]), {}
        for name, (kind, *options) in ((n, f) for group in ("required", "optional") for n, f in form.get(group, {}).items()):
            if isinstance(kind, list) or kind in WIDGETS:
                inputs[name] = values.pop(0)
                if options and (options[0].get("control_after_generate") or options[0].get("image_upload")):
                    values.pop(0)
        assert values == []
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def run(prompt: dict[str, Any]) -> dict[str, Any]:
    """Queue a prompt and return what the server says of it when it has ended."""
    number = post("/prompt", json.dumps({"prompt": prompt}).encode(), "application/json")["prompt_id"]
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        history = json.loads(get(f"/history/{number}"))
        if number in history and history[number]["status"]["status_str"] in ("success", "error"):
            return history[number]
        time.sleep(0.5)
    pytest.fail(f"ComfyUI has not ended in {TIMEOUT} seconds")


def pictures(result: dict[str, Any], node: str) -> list[np.ndarray]:
    """Return the pictures of an output node, (H, W, 3) uint8, the frames of an animation one by one."""
    found = []
    for file in result["outputs"][node]["images"]:
        data = get(f"/view?{urllib.parse.urlencode(file)}")
        found += [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    return found


@pytest.mark.parametrize("name", ["animate", "control"])
def test_the_example_workflows_make_videos(name: str) -> None:
    upload(PUPPET)
    prompt = to_prompt(json.loads((WORKFLOWS / f"{name}.json").read_text()))
    inputs = next(node["inputs"] for node in prompt.values() if node["class_type"] == "LFDMGenerate")
    inputs["seed"] = time.time_ns() % 2**32  # ComfyUI does not repeat what it has made
    result = run(prompt)
    assert result["status"]["status_str"] == "success", result["status"]
    video = np.stack(pictures(result, "4")).astype(int)
    assert video.shape == (16, 64, 64, 3)
    assert np.abs(np.diff(video, axis=0)).max() > 50
    assert len(pictures(result, "6")) == 16
    if name == "animate":
        pipe = LatentFlowPipeline.from_pretrained("puppets64")
        ours = pipe(PUPPET, inputs["condition"], generator=inputs["seed"], output_type="uint8").frames
        assert isinstance(ours, np.ndarray)
        assert np.abs(video - ours[0]).max() <= 2  # the file is lossless, and ComfyUI rounds down


def test_a_wrong_label_is_named_on_the_node() -> None:
    upload(PUPPET)
    prompt = to_prompt(json.loads((WORKFLOWS / "animate.json").read_text()))
    prompt["3"]["inputs"]["condition"] = "dance"
    status = run(prompt)["status"]
    assert status["status_str"] == "error"
    (message,) = [content for kind, content in status["messages"] if kind == "execution_error"]
    assert message["node_id"] == "3"
    assert "dance" in message["exception_message"]
