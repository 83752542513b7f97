"""Facts about a model, for `lfdm info` and for the model card that is saved with it.

`about.json` of a model folder holds what its weights do not say: texts by name, such as `data`, `preset` and `license`. A run's
config.json gives the first two. Set `pipe.about["license"]` before saving to state the licence of your weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lfdm.config.checks import check
from lfdm.diffusion.schedulers import scheduler_name
from lfdm.folders.model_folder import CONFIG_NAME, read_json
from lfdm.folders.sources import CARD_NAME
from lfdm.pipeline.quality import QUALITY_NAME, figures, is_of_weights, lookup, read_quality

if TYPE_CHECKING:
    from lfdm.pipeline.pipeline import LatentFlowPipeline

ABOUT_NAME = "about.json"
EXAMPLE_NAME = "example.gif"
CARD_ENTRIES = (CARD_NAME, ABOUT_NAME, QUALITY_NAME, EXAMPLE_NAME)
"""Files of a model folder that nothing needs to load it."""
_MARK = "<!-- written by lfdm; without this line, save_pretrained keeps the card -->"
_ABOUT = {"data": "data set", "preset": "preset", "init": "started from", "license": "licence"}


def read_about(folder: Path) -> dict[str, str]:
    """Return what a model folder says about itself or, for the model of a run, what the run's settings say.

    Raises:
        UserError: an about.json that is not texts by name.
    """
    path, run = folder / ABOUT_NAME, folder.parent / CONFIG_NAME
    if path.is_file():
        about = read_json(path)
        for name, text in about.items():
            check(isinstance(text, str), f"{path}: {name}", text, "a text")
        return about
    settings = read_json(run) if run.is_file() else {}
    data, preset, init = settings.get("data"), lookup(settings, "preset.name"), settings.get("init")
    known = {"data": Path(data).name if isinstance(data, str) else None, "preset": preset, "init": init}
    return {name: text for name, text in known.items() if isinstance(text, str)}


def describe(pipe: "LatentFlowPipeline", quality: Mapping[str, Any]) -> dict[str, str]:
    """Return facts about a model as lines of text by name; `quality` is its evaluation.json, or empty."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    sizes = {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}
    config = pipe.config
    shape = pipe.motion_codec.sample_shape(config["num_frames"], *pipe.size.cells(pipe.autoencoder.stride))
    rows = {
        "labels": ", ".join(pipe.condition.labels) or "none (--unconditional, or embedding tensors)",
        "text encoder": pipe.condition.text_encoder or "none (only labels)",
        "video": f"{config['num_frames']} frames of {pipe.size}, {config['fps']:g} per second",
        "diffused": f"{type(pipe.motion_codec).__name__}, samples of {'x'.join(map(str, shape))}",
        "sampling": f"{scheduler_name(pipe.scheduler)}, "
        + "{num_inference_steps} steps, guidance {guidance_scale:g}".format(**config),
        "parameters": ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items() if size),
        **{_ABOUT.get(name, name): text for name, text in pipe.about.items()},
    }
    if found := figures(dict(quality)):
        data, seed = lookup(quality, "data.name"), lookup(quality, "settings.seed")
        rows["measured on"] = f"{data}, {lookup(quality, 'data.split')} clips, seed {seed}"
        rows |= {
            figure.name.lower(): f"{figure.text()} ({figure.meaning}; N = {figure.num_clips or 'unknown'})" for figure in found
        }
    return rows


def write_card_files(pipe: "LatentFlowPipeline", folder: Path, *, source: Path | None, name: str) -> None:
    """Write about.json, example.gif, the evaluation if it is of these weights, and the card, into a folder with the model.

    Args:
        source: folder that the pipeline was loaded from, whose evaluation.json counts if the weights are the same.
        name: how the card's example loads the model.
    """
    if pipe.about:
        (folder / ABOUT_NAME).write_text(json.dumps(pipe.about, indent=2, ensure_ascii=False) + "\n")
    if pipe.example is not None:
        pipe.example.show(fps=pipe.config["fps"]).save(folder / EXAMPLE_NAME)
    quality = read_quality(source) if source is not None else {}
    if quality and is_of_weights(quality, folder):
        (folder / QUALITY_NAME).write_text(json.dumps(quality, indent=1) + "\n")
    else:
        quality = {}
    (folder / CARD_NAME).write_text(model_card(pipe, quality, name))


def kept_card(folder: Path) -> str | None:
    """Return the card of a model folder if it was written by hand."""
    path = folder / CARD_NAME
    text = path.read_text(errors="replace") if path.is_file() else _MARK
    return None if _MARK in text else text


def model_card(pipe: "LatentFlowPipeline", quality: Mapping[str, Any], name: str) -> str:
    """Return README.md of a model: the Hub's header, facts, an example and the use in three lines."""
    header = {"library_name": "lfdm", "tags": ["latent-flow-diffusion", "image-to-video"]}
    if licence := pipe.about.get("license"):
        header["license"] = licence
    lines = [f"{key}: {json.dumps(value)}" for key, value in header.items()]
    rows = "\n".join(f"| {key} | {' '.join(text.split()).replace('|', '/')} |" for key, text in describe(pipe, quality).items())
    label = f'"{pipe.condition.labels[0]}"' if pipe.condition.labels else "None"
    example = f"![Video, flow and occlusion]({EXAMPLE_NAME})\n\n" if pipe.example is not None else ""
    note = "" if quality else "Its quality has not been measured.\n\n"
    return f"""---
{chr(10).join(lines)}
---
{_MARK}

# {name.rpartition("/")[2]}

A model of lfdm that animates an image by latent flow diffusion. It knows pictures like those it was trained on, and no others.

{example}| | |
| --- | --- |
{rows}

{note}```python
from lfdm import LatentFlowPipeline

pipe = LatentFlowPipeline.from_pretrained("{name}")
pipe("picture.png", {label}, generator=0).show().save("video.gif")
```
"""
