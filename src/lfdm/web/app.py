"""The page: tabs, controls, and what they call. Layout and wording alone; the work is in `lfdm.web.calls`."""

import html
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr
from gradio.events import api

from lfdm.config.diffusion import MAX_GUIDANCE_SCALE
from lfdm.pipeline.control import MAX_STRENGTH
from lfdm.web.calls import Calls, Updates
from lfdm.web.components import clip_picker, picture_picker, player, player_value
from lfdm.web.jobs import JobProgress
from lfdm.web.model_page import ModelPage
from lfdm.web.requests import PAGE_SEED
from lfdm.web.results import VideoResult

TITLE = "Latent flow diffusion"
SLIDER_GUIDANCE = 8.0
"""Higher guidance is allowed in the API, but of no use on a slider."""
INTERNAL_ERROR = "the server could not do this; its log says why"
PROGRESS_BAR = "lf-bar"
"""Class of the bar that the status shows while a run goes on."""

logger = logging.getLogger(__name__)


def build_page(calls: Calls, model: ModelPage) -> gr.Blocks:
    """The whole app, with the named API calls `/generate`, `/transfer` and `/model`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        name = html.escape(model.name)
        gr.HTML(
            f'<div class="lf-title"><h1>{TITLE}</h1><p>A video from one picture and a label</p>'
            f'<span class="lf-chip">{name}</span></div>'
        )
        with gr.Tabs():
            with gr.Tab("Generate"):
                _generate_tab(calls)
            with gr.Tab("Transfer"):
                _transfer_tab(calls)
            with gr.Tab("Model"):
                gr.HTML(model.to_html())
                if model.card:
                    gr.Markdown(model.card, elem_classes="lf-model-card")
        _add_api(calls, model)
    page.queue(max_size=calls.limits.queue_size, api_open=False, default_concurrency_limit=calls.limits.num_jobs)
    return page


def _generate_tab(calls: Calls) -> None:
    choices, limits = calls.choices, calls.limits
    with gr.Row(elem_classes="lf-columns"):
        with gr.Column(scale=5, min_width=300, elem_classes="lf-card"):
            picture = picture_picker(choices.examples, limits)
            with gr.Row():
                label = gr.Dropdown(
                    list(choices.labels), value=_first(choices.labels), label="Label", visible=bool(choices.labels), min_width=140
                )
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=PAGE_SEED, min_width=120, elem_classes="lf-seed"
                )
            strength = _strength_slider()
            with gr.Accordion("More settings", open=False):
                most_steps = min(limits.num_inference_steps, choices.max_steps)
                steps = gr.Slider(1, most_steps, min(choices.num_inference_steps, most_steps), step=1, label="Steps")
                guidance = gr.Slider(
                    0, min(SLIDER_GUIDANCE, MAX_GUIDANCE_SCALE), choices.guidance_scale, step=0.1, label="Guidance"
                )
                frames = gr.Slider(2, choices.max_frames, choices.num_frames, step=1, label="Frames")
                loop = gr.Checkbox(False, label="Close the loop: the last frame leads into the first")
                videos = gr.Slider(1, limits.num_videos, 1, step=1, label="Videos, from one seed to the next")
            start, stop = _buttons("Generate")
        with gr.Column(scale=8, min_width=300, elem_classes="lf-card"):
            status = _status()
            screen = player("Choose a picture and a label, then press Generate.")

    async def generate_on_page(
        picture: Any, label: Any, seed: Any, strength: Any, steps: Any, guidance: Any, frames: Any, loop: Any, videos: Any
    ) -> AsyncIterator[tuple[Any, Any]]:
        fields = {
            **_picture_fields(picture),
            "label": label,
            "seed": seed,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "motion_strength": strength,
            "num_frames": frames,
            "loop": loop,
            "num_videos": videos,
        }
        async with aclosing(_for_page(lambda: calls.generate(**fields))) as updates:
            async for update in updates:
                yield update

    inputs = [picture, label, seed, strength, steps, guidance, frames, loop, videos]
    _connect(generate_on_page, inputs, start, stop, screen, status)


def _transfer_tab(calls: Calls) -> None:
    with gr.Row(elem_classes="lf-columns"):
        with gr.Column(scale=5, min_width=300, elem_classes="lf-card"):
            picture = picture_picker(calls.choices.examples, calls.limits)
            clip = clip_picker(calls.limits)
            kind = gr.Radio(
                [
                    ("Relative to its first frame", True),
                    ("Absolute, pose for pose", False),
                ],
                value=True,
                label="Motion",
            )
            strength = _strength_slider()
            start, stop = _buttons("Transfer")
        with gr.Column(scale=8, min_width=300, elem_classes="lf-card"):
            status = _status()
            screen = player("Choose a picture and a driving clip, then press Transfer.")

    async def transfer_on_page(picture: Any, clip: Any, relative: Any, strength: Any) -> AsyncIterator[tuple[Any, Any]]:
        fields = {**_picture_fields(picture), "driving": clip, "relative": relative, "motion_strength": strength}
        async with aclosing(_for_page(lambda: calls.transfer(**fields))) as updates:
            async for update in updates:
                yield update

    _connect(transfer_on_page, [picture, clip, kind, strength], start, stop, screen, status)


def _add_api(calls: Calls, model: ModelPage) -> None:
    """The same calls for programs. Every answer but the last has an empty list of videos and says how far the work is."""

    async def generate(
        image: dict[str, Any] | str,
        label: str | None = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_strength: float = 1.0,
        num_videos: int = 1,
        num_frames: int | None = None,
        loop: bool = False,
        mask: dict[str, Any] | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        fields = {
            "image": image,
            "mask": mask,
            "label": label,
            "seed": seed,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "motion_strength": motion_strength,
            "num_videos": num_videos,
            "num_frames": num_frames,
            "loop": loop,
        }
        async with aclosing(_for_program(lambda: calls.generate(**fields))) as updates:
            async for update in updates:
                yield update

    async def transfer(
        image: dict[str, Any] | str,
        driving: dict[str, Any],
        relative: bool = True,
        motion_strength: float = 1.0,
        mask: dict[str, Any] | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        fields = {
            "image": image,
            "mask": mask,
            "driving": driving,
            "relative": relative,
            "motion_strength": motion_strength,
        }
        async with aclosing(_for_program(lambda: calls.transfer(**fields))) as updates:
            async for update in updates:
                yield update

    async def describe() -> dict[str, Any]:
        return model.to_json()

    api(generate, api_name="generate", concurrency_id="jobs", concurrency_limit=calls.limits.num_jobs)
    api(transfer, api_name="transfer", concurrency_id="jobs", concurrency_limit=calls.limits.num_jobs)
    api(describe, api_name="model", concurrency_limit=None)


# -------------------------------------------------------------------------------------------------------- parts of both


def _first(labels: Sequence[str]) -> str | None:
    return labels[0] if labels else None


def _strength_slider() -> gr.Slider:
    return gr.Slider(0, MAX_STRENGTH, 1.0, step=0.05, label="Motion strength", info="0 is the picture itself, 1 as generated")


def _buttons(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary", scale=3, min_width=120), gr.Button("Cancel", variant="secondary", min_width=90)


def _status() -> gr.HTML:
    return gr.HTML("", elem_classes="lf-status", apply_default_css=False)


def _connect(call: Any, inputs: Sequence[Any], start: gr.Button, stop: gr.Button, screen: gr.HTML, status: gr.HTML) -> None:
    running = start.click(
        call,
        list(inputs),
        [screen, status],
        preprocess=False,  # every field is checked by us, files before they are decoded
        show_progress="minimal",
        show_progress_on=status,
        concurrency_id="jobs",
        api_visibility="private",
        trigger_mode="once",
    )
    stop.click(None, cancels=[running], api_visibility="private")
    # Only once the page listens no longer to the cancelled run: before that, its next step would take the note's place.
    note = '<span class="lf-quiet">Cancelled.</span>'
    end = f"(text) => text.includes('{PROGRESS_BAR}') ? '{note}' : text"
    running.then(None, status, status, js=end, api_visibility="private")


def _picture_fields(picture: object) -> dict[str, Any]:
    """The picker's value, whatever a client sent in its place."""
    if not isinstance(picture, dict):
        return {"image": picture, "mask": None}
    return {"image": picture.get("image"), "mask": picture.get("mask")}


async def _for_page(start: Callable[[], Updates]) -> AsyncGenerator[tuple[Any, Any], None]:
    """Player and status after every step; an error is a line of the page. Closing it, as cancelling does, closes the work."""
    try:
        async with aclosing(start()) as updates:
            async for update in updates:
                if isinstance(update, JobProgress):
                    yield gr.skip(), _progress_html(update)
                else:
                    yield player_value(update.result), ""
    except ValueError as error:
        yield gr.skip(), _error_html(str(error))
    except Exception:
        logger.exception("error in a request from the page")
        yield gr.skip(), _error_html(INTERNAL_ERROR)


async def _for_program(start: Callable[[], Updates]) -> AsyncGenerator[dict[str, Any], None]:
    try:
        async with aclosing(start()) as updates:
            async for update in updates:
                if isinstance(update, JobProgress):
                    yield {"status": f"{update.done} of {update.total}", "videos": []}
                else:
                    yield {"status": "done", "videos": [_video_json(result) for result in update.result]}
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except Exception:
        logger.exception("error in a request from a program")
        raise gr.Error(INTERNAL_ERROR, print_exception=False) from None


def _video_json(result: VideoResult) -> dict[str, Any]:
    return {
        "title": result.title,
        "fps": result.fps,
        "num_frames": result.num_frames,
        "file": {"path": str(result.file), "orig_name": result.file.name, "meta": {"_type": "gradio.FileData"}},
    }


def _progress_html(progress: JobProgress) -> str:
    share = 100 * progress.done / max(progress.total, 1)
    return f'Step {progress.done} of {progress.total}<div class="{PROGRESS_BAR}"><i style="width:{share:.0f}%"></i></div>'


def _error_html(message: str) -> str:
    return f'<div class="lf-error" role="alert">{html.escape(message)}</div>'
