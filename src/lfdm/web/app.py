"""The page: tabs and controls, and the API. The work is done in `lfdm.web.calls`."""

import html
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import gradio as gr
from gradio.events import api

from lfdm.data.free_motion import FREE_LABEL
from lfdm.pipeline.control import MAX_STRENGTH
from lfdm.web.answers import PROGRESS_BAR, api_answers, page_answers, streaming
from lfdm.web.calls import Calls
from lfdm.web.components import clip_picker, picture_picker, player
from lfdm.web.model_page import ModelPage
from lfdm.web.requests import PAGE_SEED

TITLE = "Latent flow diffusion"
ApiCall = Callable[..., AsyncIterator[dict[str, Any]]]

SLIDER_GUIDANCE = 8.0
"""Largest guidance on the slider; the API allows more, which is rarely useful."""


def build_page(calls: Calls, model: ModelPage) -> gr.Blocks:
    """Build the whole app, with the named API calls `/generate`, `/transfer` and `/model`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(
            f'<div class="lf-title"><h1>{TITLE}</h1><p>Animate a picture</p>'
            f'<span class="lf-chip">{html.escape(model.name)}</span></div>'
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
    labels = choices.labels
    max_steps = min(limits.num_inference_steps, choices.max_steps)
    guidance = choices.guidance_range[0], min(SLIDER_GUIDANCE, choices.guidance_range[1])
    with gr.Row(elem_classes="lf-columns"):
        with gr.Column(scale=5, min_width=300, elem_classes="lf-card"):
            picture = picture_picker(choices.examples, limits, controls=True, follows_tracks=choices.follows_tracks)
            with gr.Row():
                value = FREE_LABEL if FREE_LABEL in labels else next(iter(labels), None)
                label = gr.Dropdown(
                    list(labels),
                    value=value,
                    label="Label or mix",
                    visible=bool(labels),
                    allow_custom_value=True,
                    min_width=140,
                )
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=PAGE_SEED, min_width=120, elem_classes="lf-seed"
                )
            strength = _strength_slider()
            with gr.Accordion("More settings", open=False):
                controls = {
                    "label": label,
                    "seed": seed,
                    "motion_strength": strength,
                    "num_inference_steps": gr.Slider(
                        1, max_steps, min(choices.num_inference_steps, max_steps), step=1, label="Steps"
                    ),
                    "guidance_scale": gr.Slider(*guidance, choices.guidance_scale, step=0.1, label="Guidance"),
                    "num_frames": gr.Slider(2, choices.max_frames, choices.num_frames, step=1, label="Frames"),
                    "loop": gr.Checkbox(False, label="Loop: the last frame leads back to the first"),
                    "fit": _fit_choice(choices.fit),
                    "full_size": _full_size_switch(),
                    "unconditional": gr.Checkbox(not labels, label="Ignore the label: any motion", visible=bool(labels)),
                    "num_videos": gr.Slider(1, limits.num_videos, 1, step=1, label="Videos (consecutive seeds)"),
                }
            start, stop = _buttons("Generate")
        screen, status = _output("Choose a picture and a label, then press Generate.")
    _connect(calls.generate, picture, controls, start, stop, screen, status)


def _transfer_tab(calls: Calls) -> None:
    with gr.Row(elem_classes="lf-columns"):
        with gr.Column(scale=5, min_width=300, elem_classes="lf-card"):
            picture = picture_picker(calls.choices.examples, calls.limits)
            kinds = [("Relative to the clip's first frame", True), ("Absolute: copy the pose", False)]
            controls = {
                "driving": clip_picker(calls.limits),
                "relative": gr.Radio(kinds, value=True, label="Motion"),
                "motion_strength": _strength_slider(),
                "fit": _fit_choice(calls.choices.fit),
                "full_size": _full_size_switch(),
                "audio": gr.Checkbox(True, label="Keep the clip's sound"),
            }
            start, stop = _buttons("Transfer")
        screen, status = _output("Choose a picture and a driving clip, then press Transfer.")
    _connect(calls.transfer, picture, controls, start, stop, screen, status)


def _add_api(calls: Calls, model: ModelPage) -> None:
    """Add the API calls. All answers except the last have an empty list of videos and report the progress."""

    async def describe() -> dict[str, Any]:
        return model.to_json()

    jobs = {"concurrency_id": "jobs", "concurrency_limit": calls.limits.num_jobs}
    api(_generate_call(calls), api_name="generate", **jobs)
    api(_transfer_call(calls), api_name="transfer", **jobs)
    api(describe, api_name="model", concurrency_limit=None)


def _generate_call(calls: Calls) -> ApiCall:
    @streaming
    def generate(
        image: dict[str, Any] | str,
        label: str | dict[str, float] | None = None,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        motion_strength: float = 1.0,
        num_videos: int = 1,
        num_frames: int | None = None,
        loop: bool = False,
        mask: dict[str, Any] | None = None,
        fit: str | None = None,
        full_size: bool = False,
        unconditional: bool = False,
        control: str | None = None,
        end_image: dict[str, Any] | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        updates = calls.generate(
            image=image,
            mask=mask,
            label=label,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            motion_strength=motion_strength,
            num_videos=num_videos,
            num_frames=num_frames,
            loop=loop,
            fit=fit,
            full_size=full_size,
            unconditional=unconditional,
            control=control,
            end_image=end_image,
        )
        return api_answers(updates)

    return generate


def _transfer_call(calls: Calls) -> ApiCall:
    @streaming
    def transfer(
        image: dict[str, Any] | str,
        driving: dict[str, Any],
        relative: bool = True,
        motion_strength: float = 1.0,
        mask: dict[str, Any] | None = None,
        fit: str | None = None,
        full_size: bool = False,
        audio: bool = True,
    ) -> AsyncGenerator[dict[str, Any], None]:
        updates = calls.transfer(
            image=image,
            mask=mask,
            driving=driving,
            relative=relative,
            motion_strength=motion_strength,
            fit=fit,
            full_size=full_size,
            audio=audio,
        )
        return api_answers(updates)

    return transfer


def _fit_choice(fit: str) -> gr.Radio:
    return gr.Radio([("As in training", fit), ("The picture's own", "native")], value=fit, label="Shape of the video")


def _full_size_switch() -> gr.Checkbox:
    return gr.Checkbox(False, label="Frames in the picture's own size, of its own pixels")


def _strength_slider() -> gr.Slider:
    info = "0 = still picture, 1 = as generated"
    return gr.Slider(0, MAX_STRENGTH, 1.0, step=0.05, label="Motion strength", info=info)


def _buttons(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary", scale=3, min_width=120), gr.Button("Cancel", variant="secondary", min_width=90)


def _output(hint: str) -> tuple[gr.HTML, gr.HTML]:
    """Return the column of player and status line."""
    with gr.Column(scale=8, min_width=300, elem_classes="lf-card"):
        status = gr.HTML("", elem_classes="lf-status", apply_default_css=False)
        return player(hint), status


def _connect(
    call: Callable[..., Any],
    picture: gr.HTML,
    controls: Mapping[str, Any],
    start: gr.Button,
    stop: gr.Button,
    screen: gr.HTML,
    status: gr.HTML,
) -> None:
    """Run `call` with the picture and the controls, whose keys are its fields, when `start` is pressed."""

    @streaming
    def run(picture: Any, *values: Any) -> AsyncGenerator[tuple[Any, Any], None]:
        chosen = picture if isinstance(picture, dict) else {"image": picture}  # a client may send anything
        fields = dict(zip(controls, values, strict=True))
        if "unconditional" in fields:  # generating, not transferring
            fields |= {name: chosen.get(name) for name in ("control", "end_image")}
        if fields.get("unconditional") is True:
            fields["label"] = None
        return page_answers(call(image=chosen.get("image"), mask=chosen.get("mask"), **fields))

    running = start.click(
        run,
        [picture, *controls.values()],
        [screen, status],
        preprocess=False,  # we check every field ourselves, files before they are decoded
        show_progress="minimal",
        show_progress_on=status,
        concurrency_id="jobs",
        api_visibility="private",
        trigger_mode="once",
    )
    stop.click(None, cancels=[running], api_visibility="private")
    # Shown only after the page has stopped listening to the cancelled run, whose next step would overwrite the note.
    note = '<span class="lf-quiet">Cancelled.</span>'
    end = f"(text) => text.includes('{PROGRESS_BAR}') ? '{note}' : text"
    running.then(None, status, status, js=end, api_visibility="private")
