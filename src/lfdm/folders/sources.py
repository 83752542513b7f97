"""Find a model by name: one bundled with the package, a local folder, or a repository of the Hugging Face Hub."""

import re
from pathlib import Path
from typing import TypedDict, Unpack

from lfdm.config.unsupported import refuse_unknown
from lfdm.errors import UserError
from lfdm.folders.files import existing_path

INDEX_NAME = "model_index.json"
CARD_NAME = "README.md"
ASSETS_DIR = Path(__file__).parents[1] / "assets"


class HubOptions(TypedDict, total=False):
    """How a Hub repository is downloaded, with the names and meanings of `huggingface_hub.snapshot_download`."""

    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None
    force_download: bool


class UploadOptions(TypedDict, total=False):
    """How a folder is uploaded to a Hub repository, with the names and meanings of diffusers' `push_to_hub`."""

    private: bool | None
    token: str | bool | None
    commit_message: str | None
    create_pr: bool


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def bundled_models() -> list[str]:
    """List the names of the models that come with this package."""
    return sorted(path.parent.name for path in ASSETS_DIR.glob(f"*/{INDEX_NAME}"))


def bundled_images(name: str) -> list[Path]:
    """List the example images of a bundled model, in order; FileNotFoundError if there are none."""
    folder = ASSETS_DIR / name / "images"
    images = sorted(folder.glob("*.png"))
    if not images:
        raise FileNotFoundError(f"no example images in {folder}")
    return images


def find_folder(name: str | Path, **hub: Unpack[HubOptions]) -> Path:
    """Return the folder of a bundled model, a local folder, or the downloaded copy of a Hub repository.

    A bundled name wins over a local folder of that name; `./name` means the folder.

    Raises:
        UserError: none of these, an unknown option, or the Hub does not provide the repository.
        FileNotFoundError: a path that does not exist.
    """
    refuse_unknown("from_pretrained", hub, HubOptions.__annotations__)
    if not isinstance(name, str | Path):
        raise UserError(f"a model is given by its name or folder, not by a {type(name).__name__}")
    text = str(name)
    if not text.strip():
        raise UserError(f"model must be a name or a folder; got {text!r}; {_allowed_names()}")
    if isinstance(name, str) and text in bundled_models():
        return ASSETS_DIR / text
    folder = existing_path(name)
    if folder is not None and folder.is_dir():
        return folder
    if isinstance(name, str) and _HUB_NAME.fullmatch(text):
        return _download(text, hub)
    if isinstance(name, Path) or any(mark in text for mark in "/\\~"):
        raise FileNotFoundError(f"no model folder {name}; {_allowed_names()}")
    raise UserError(f"unknown model {text!r}; {_allowed_names()}")


def _allowed_names() -> str:
    bundled = ", ".join(bundled_models()) or "none in this installation"
    return f"bundled models: {bundled}; else a pipeline folder, a diffusion run folder, or a Hub repository owner/name"


def _download(repository: str, options: HubOptions) -> Path:
    """Download only the JSON and safetensors files of a Hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"], **options))
    except (OSError, HFValidationError, RuntimeError) as error:  # RuntimeError: httpx without a connection
        raise UserError(
            f"model {repository} not found locally and could not be downloaded from the Hub ({_first_line(error)}); "
            f"{_allowed_names()}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def check_upload_options(options: UploadOptions, *, used: bool) -> None:
    """Raise UserError for an unknown option, or for any if nothing is uploaded."""
    refuse_unknown("save_pretrained", options, UploadOptions.__annotations__)
    if options and not used:
        raise UserError(f"{', '.join(options)}: no effect without push_to_hub=True; leave it out")


def upload_folder(folder: Path, repository: str, **options: Unpack[UploadOptions]) -> str:
    """Upload a folder to a Hub repository, which is created if needed; return the address of the commit.

    Raises:
        UserError: the Hub cannot be reached or refuses.
    """
    import huggingface_hub

    token = options.get("token")
    try:
        name = huggingface_hub.create_repo(repository, token=token, private=options.get("private"), exist_ok=True).repo_id
        kept = [CARD_NAME] if huggingface_hub.file_exists(name, CARD_NAME, token=token) else None
        commit = huggingface_hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            token=token,
            commit_message=options.get("commit_message"),
            create_pr=options.get("create_pr", False),
            ignore_patterns=kept,
        )
    except Exception as error:  # the client raises those of its HTTP library, too
        raise UserError(f"{repository} could not be uploaded to the Hub ({_first_line(error)})") from error
    return str(commit)


def write_model_card(folder: Path, class_name: str, repository: str) -> None:
    """Write the README.md that tells visitors of a Hub repository how to load what it holds."""
    (folder / CARD_NAME).write_text(
        f"""---
library_name: lfdm
tags: [latent-flow-diffusion, image-to-video]
---

A {class_name} of lfdm, which animates an image by latent flow diffusion.

```python
from lfdm import {class_name}

model = {class_name}.from_pretrained("{repository}")
```
"""
    )
