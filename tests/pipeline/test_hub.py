"""Uploads to and downloads from a local server that speaks the part of the Hub's API that huggingface_hub uses."""

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import constants, hf_api

from lfdm import LatentFlowAutoencoder, LatentFlowPipeline
from lfdm.config.presets import Preset
from lfdm.errors import UserError

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Repositories in memory, each with one commit; small files are uploaded within it, so that there is no LFS."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[1:] == ["repos", "create"]:
            requested = json.loads(body)
            name = f"{requested.get('organization') or 'me'}/{requested['name']}"
            self.server.files.setdefault(name, {})
            self.server.private[name] = bool(requested.get("private")) or requested.get("visibility") == "private"
            return self.answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if parts[1:] == ["validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        files = self.server.files["/".join(parts[2:4])]
        if parts[4] == "preupload":
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.answer({"files": modes})
        assert parts[4] == "commit"
        for entry in map(json.loads, body.splitlines()):
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/x/y/commit/{COMMIT}"})

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.server.files.get(name)
        if files is None:
            return self.answer({"error": "Repository not found"}, status=404, error="RepoNotFound")
        if parts[0] == "api" and "tree" in parts:
            return self.answer(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
            )
        if parts[0] == "api":
            return self.answer({"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0})
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self.answer({"error": "Entry not found"}, status=404, error="EntryNotFound")
        return self.answer(content)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content: Any, *, status: int = 200, error: str | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error is not None:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        del format, args


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    return LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave"))


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


def test_a_pipeline_is_pushed_and_loaded(hub: Hub, pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.push_to_hub("me/waving", private=True)
    assert hub.private == {"me/waving": True}
    assert {"model_index.json", "unet/config.json", "README.md"} <= set(hub.files["me/waving"])
    hub.files["me/waving"]["malware.bin"] = b"never downloaded"
    loaded = LatentFlowPipeline.from_pretrained(
        "me/waving",
        torch_dtype=torch.bfloat16,
        revision="main",
        cache_dir=tmp_path / "cache",
        token="hf_test",
        force_download=True,
    )
    assert loaded.unet.dtype == loaded.autoencoder.dtype == torch.bfloat16
    assert not list((tmp_path / "cache").rglob("malware.bin"))
    hub.files.clear()
    offline = LatentFlowPipeline.from_pretrained("me/waving", cache_dir=tmp_path / "cache", local_files_only=True)
    assert same_weights(offline.unet, pipe.unet)
    assert offline.components.keys() == pipe.components.keys()


def test_a_saved_pipeline_is_pushed_with_its_variant(hub: Hub, pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(
        tmp_path / "model", variant="fp16", half=True, safe_serialization=True, push_to_hub=True, repo_id="me/half"
    )
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.files["me/half"]
    loaded = LatentFlowPipeline.from_pretrained("me/half", variant="fp16", use_safetensors=True)
    assert torch.equal(next(loaded.unet.parameters()), next(pipe.unet.parameters()).half().float())
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model\.safetensors"):
        LatentFlowPipeline.from_pretrained("me/half")
    with pytest.raises(UserError, match="another variant"):
        pipe.save_pretrained(tmp_path / "model")


def test_a_model_is_pushed_and_loaded(hub: Hub, pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    pipe.autoencoder.push_to_hub("me/stage1")
    assert same_weights(LatentFlowAutoencoder.from_pretrained("me/stage1"), pipe.autoencoder)
    pipe.save_pretrained(tmp_path / "waving", push_to_hub=True)  # into a repository of the folder's name
    assert "model_index.json" in hub.files["me/waving"]
    loaded = LatentFlowAutoencoder.from_pretrained("me/waving", subfolder="autoencoder", dtype=torch.float16)
    assert loaded.dtype == torch.float16
    pipe.unet.save_pretrained(tmp_path / "unet", push_to_hub=True, repo_id="me/unet")
    assert set(hub.files["me/unet"]) == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_a_model_card_that_is_there_already_is_kept(hub: Hub, pipe: LatentFlowPipeline) -> None:
    pipe.push_to_hub("me/waving")
    assert b'LatentFlowPipeline.from_pretrained("me/waving")' in hub.files["me/waving"]["README.md"]
    hub.files["me/waving"]["README.md"] = b"My model"
    pipe.push_to_hub("me/waving", commit_message="Again")
    assert hub.files["me/waving"]["README.md"] == b"My model"


def test_an_upload_that_fails_is_one_line(pipe: LatentFlowPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError, match=r"^me/waving could not be uploaded to the Hub \([^\n]*$"):
            pipe.push_to_hub("me/waving", token="hf_test")
    with pytest.raises(UserError, match="'privat': did you mean 'private'"):
        pipe.push_to_hub("me/waving", privat=True)  # pyright: ignore[reportCallIssue]


def test_a_missing_repository_is_one_line(hub: Hub) -> None:
    assert hub.files == {}
    with pytest.raises(UserError, match=r"^model me/nothing .*could not be downloaded from the Hub \([^\n]*$"):
        LatentFlowPipeline.from_pretrained("me/nothing")
