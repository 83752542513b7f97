"""The ComfyUI nodes against ComfyUI's node interface; its own modules are stood in for."""

import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lfdm.config.control import Control
from lfdm.config.presets import Preset
from lfdm.errors import UserError
from lfdm.pipeline.pipeline import LatentFlowPipeline

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
WORKFLOWS = FOLDER / "example_workflows"
OWN_TYPES = {"LFDM_MODEL", "LFDM_MOTION", "LFDM_CONTROL"}
COMFY_TYPES = {"IMAGE", "MASK", "INT", "FLOAT", "STRING", "BOOLEAN"}
BUILT_IN: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "LoadImage": ({}, ("IMAGE", "MASK")),
    "SaveAnimatedWEBP": ({"images": "IMAGE"}, ()),
    "PreviewImage": ({"images": "IMAGE"}, ()),
}
"""Inputs and outputs of ComfyUI's nodes that the example uses."""


class ProcessingInterruptedError(Exception):
    """Stands in for ComfyUI's InterruptProcessingException."""


class Comfy(SimpleNamespace):
    """What the stand-ins of ComfyUI's modules record."""

    updates: list[tuple[int, int]]
    interrupt_after: int | None
    checks: int


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comfy:
    """Stand in for the modules of ComfyUI that nodes use, with an empty folder of models."""
    state = Comfy(updates=[], interrupt_after=None, checks=0)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None) -> None:
            state.updates.append((value, total or self.total))

    def throw_exception_if_processing_interrupted() -> None:
        state.checks += 1
        if state.interrupt_after is not None and state.checks > state.interrupt_after:
            raise ProcessingInterruptedError

    folders: dict[str, list[str]] = {}
    modules = {
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
            "get_torch_device": lambda: torch.device("cpu"),
        },
        "folder_paths": {
            "models_dir": str(tmp_path / "models"),
            "add_model_folder_path": lambda name, path: folders.setdefault(name, []).append(path),
            "get_folder_paths": lambda name: folders[name],
        },
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return state


@pytest.fixture
def nodes(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Load the folder as ComfyUI does, and return its classes."""
    assert not comfy.updates
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_lfdm", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_nodes_lfdm", module)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    yield module.NODE_CLASS_MAPPINGS
    sys.modules.pop("custom_nodes_lfdm.nodes", None)


@pytest.fixture
def tiny_model(nodes: dict[str, Any], tiny_preset: Preset, tmp_path: Path) -> LatentFlowPipeline:
    LatentFlowPipeline.from_preset(tiny_preset, ("jump", "wave")).save_pretrained(tmp_path / "models" / "lfdm" / "tiny")
    model, labels = nodes["LFDMLoad"]().load("tiny", "float32")
    assert labels == "jump\nwave"
    return model


def inputs_of(node: Any) -> dict[str, Any]:
    groups = node.INPUT_TYPES()
    return {name: form for group in ("required", "optional") for name, form in groups.get(group, {}).items()}


def defaults_of(node: Any) -> dict[str, Any]:
    """Return the value of every widget as the page shows it first."""
    forms = inputs_of(node)
    return {
        name: form[1].get("default") if isinstance(form[0], str) else form[0][0]
        for name, form in forms.items()
        if isinstance(form[0], list) or (len(form) > 1 and "default" in form[1])
    }


def test_every_node_keeps_the_contract(nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        groups = node.INPUT_TYPES()
        assert "required" in groups, name
        assert groups.keys() <= {"required", "optional", "hidden"}
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert list(parameters)[1:] == list(inputs_of(node)), name
        optional = {parameter for parameter, value in parameters.items() if value.default is not inspect.Parameter.empty}
        assert optional == set(groups.get("optional", {})), name
        assert isinstance(node.CATEGORY, str)
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        assert set(node.RETURN_TYPES) <= OWN_TYPES | COMFY_TYPES
        for label, form in inputs_of(node).items():
            assert isinstance(form, tuple), label
            assert isinstance(form[0], list) or form[0] in OWN_TYPES | COMFY_TYPES, label
            options: Any = [*form, {}][1]
            if form[0] in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], label


@pytest.mark.usefixtures("tiny_model")
def test_models_are_the_bundled_ones_and_those_of_the_model_folder(nodes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "models" / "lfdm" / "notes").mkdir()
    listed = nodes["LFDMLoad"].INPUT_TYPES()["required"]["model"][0]
    assert "tiny" in listed
    assert "puppets64" in listed
    assert "notes" not in listed
    with pytest.raises(UserError, match="model"):
        nodes["LFDMLoad"]().load("../tiny", "float32")


def test_images_become_videos_with_progress(nodes: dict[str, Any], tiny_model: LatentFlowPipeline, comfy: Comfy) -> None:
    node = nodes["LFDMGenerate"]
    image = torch.rand(2, 32, 32, 3)
    values = defaults_of(node) | {"num_inference_steps": 3}
    frames, motion, fps = node().generate(tiny_model, image, **values)
    count = tiny_model.config["num_frames"]
    assert frames.shape == (2 * count, 32, 32, 3)
    assert (frames.dtype, frames.device.type, fps) == (torch.float32, "cpu", tiny_model.config["fps"])
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert torch.allclose(frames[::count], image, atol=1e-5)
    done = [value for value, _ in comfy.updates]
    assert done == sorted(done)
    assert done[:3] == [1, 2, 3]
    assert comfy.updates[-1] == (3 + count, 3 + count)
    again, _, _ = node().generate(tiny_model, image, **values)
    other, _, _ = node().generate(tiny_model, image, **values | {"seed": 1})
    assert torch.equal(frames, again)
    assert not torch.equal(frames, other)
    drawing = nodes["LFDMMotionPreview"]().preview(motion, "flow", 1)[0]
    assert drawing.shape == (count, *drawing.shape[1:3], 3)
    assert drawing.max() <= 1


def test_masks_alpha_and_sizes_follow_comfyui(nodes: dict[str, Any], tiny_model: LatentFlowPipeline) -> None:
    node = nodes["LFDMGenerate"]
    values = defaults_of(node) | {"num_inference_steps": 1}
    image = torch.rand(1, 48, 40, 3)
    frames, _, _ = node().generate(tiny_model, image, **values | {"full_size": True}, motion_mask=torch.zeros(1, 48, 40))
    assert frames.shape[1:] == (48, 40, 3)
    assert torch.allclose(frames, image.expand_as(frames), atol=1 / 255)
    clear = torch.cat((torch.rand(1, 32, 32, 3), torch.linspace(0, 1, 32).expand(1, 32, 32)[..., None]), dim=-1)
    assert node().generate(tiny_model, clear, **values)[0].shape[-1] == 4
    frames, _, _ = node().generate(tiny_model, torch.rand(1, 32, 32, 3), **values | {"condition": " ", "num_frames": 6})
    assert len(frames) == 6
    with pytest.raises(UserError, match="dance"):
        node().generate(tiny_model, torch.rand(1, 32, 32, 3), **values | {"condition": "dance"})


def test_stopping_the_queue_stops_sampling_and_transfer(
    nodes: dict[str, Any], tiny_model: LatentFlowPipeline, comfy: Comfy
) -> None:
    comfy.interrupt_after = 2
    node = nodes["LFDMGenerate"]
    with pytest.raises(ProcessingInterruptedError):
        node().generate(tiny_model, torch.rand(1, 32, 32, 3), **defaults_of(node) | {"num_inference_steps": 5})
    assert [value for value, _ in comfy.updates] == [1, 2]
    comfy.checks = 0
    node = nodes["LFDMTransfer"]
    with pytest.raises(ProcessingInterruptedError):
        node().transfer(tiny_model, torch.rand(1, 32, 32, 3), torch.rand(5, 32, 32, 3), **defaults_of(node))
    assert [value for value, _ in comfy.updates] == [1, 2, 1, 2]


def test_the_motion_of_frames_is_transferred(nodes: dict[str, Any], tiny_model: LatentFlowPipeline, comfy: Comfy) -> None:
    node = nodes["LFDMTransfer"]
    image = torch.rand(1, 32, 32, 3)
    still = torch.rand(1, 32, 32, 3).repeat(5, 1, 1, 1)
    frames, motion = node().transfer(tiny_model, image, still, **defaults_of(node))
    assert frames.shape == (5, 32, 32, 3)
    assert torch.allclose(frames[:1], image, atol=1e-5)
    assert (motion.motion.flow[:, :, 1:] == motion.motion.flow[:, :, 1:2]).all()
    assert [value for value, _ in comfy.updates][:5] == [1, 2, 3, 4, 5]
    assert comfy.updates[-1] == (10, 10)
    assert nodes["LFDMMotionPreview"]().preview(motion, "occlusion", 0)[0].shape[0] == 5


def test_controls_reach_the_video(nodes: dict[str, Any], tiny_model: LatentFlowPipeline) -> None:
    generate, control = nodes["LFDMGenerate"], nodes["LFDMControl"]
    image, values = torch.rand(1, 32, 32, 3), defaults_of(generate) | {"num_inference_steps": 2}
    free, moving, _ = generate().generate(tiny_model, image, **values)
    empty = control().control(**defaults_of(control))[0]
    assert empty == Control()
    assert torch.equal(free, generate().generate(tiny_model, image, **values, control=empty)[0])
    still = control().control(**defaults_of(control) | {"mask_strength": 0.0}, part_mask=torch.ones(1, 32, 32))[0]
    left = generate().generate(tiny_model, image, **values, control=still)[1].motion.flow
    assert left.abs().mean() < moving.motion.flow.abs().mean() / 2
    text = defaults_of(control) | {"labels": "jump@0-0.5, wave@0.5-1", "part_strengths": "4,5=0.5\n\n20,9=1.5"}
    timed = control().control(**text, end_image=torch.rand(1, 32, 32, 3))[0]
    assert [part.at for part in timed.strengths] == [(4.0, 5.0), (20.0, 9.0)]
    frames, _, _ = generate().generate(tiny_model, image, **values | {"condition": ""}, control=timed)
    assert not torch.equal(frames, free)
    with pytest.raises(UserError, match="condition"):
        generate().generate(tiny_model, image, **values, control=timed)


def test_drags_and_pins_are_given_to_models_that_follow_tracks(
    nodes: dict[str, Any], tiny_model: LatentFlowPipeline, tiny_preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    generate, node = nodes["LFDMGenerate"], nodes["LFDMControl"]
    image, values = torch.rand(1, 32, 32, 3), defaults_of(generate) | {"num_inference_steps": 1}
    texts = {"drags": "4,5:10,12\n20,9:28,10@0.4:24,18@1", "drag_radius": 3.0, "pins": " 5,28 \n"}
    control = node().control(**defaults_of(node) | texts)[0]
    assert (len(control.drags), control.drags[0].radius, control.pins) == (2, 3.0, ((5.0, 28.0),))
    with pytest.raises(UserError, match="track-inputs"):
        generate().generate(tiny_model, image, **values, control=control)
    preset = replace(tiny_preset, unet=replace(tiny_preset.unet, track_inputs=True))
    caplog.set_level("INFO")
    _, motion, _ = generate().generate(LatentFlowPipeline.from_preset(preset, ("wave",)), image, **values, control=control)
    assert motion.control.distance.shape[:2] == (1, 3)
    assert "drag 4,5" in caplog.text  # an untrained network leaves a rest


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("drags", "4,5", "drag must"),
        ("pins", "4", "pins"),
        ("part_strengths", "/etc/passwd=0.5", "part_mask"),
        ("part_strengths", "4,5=3", "part strength"),
        ("labels", "wave", "wave@0-0.5"),
    ],
)
def test_lines_of_another_form_are_named(nodes: dict[str, Any], name: str, text: str, words: str) -> None:
    node = nodes["LFDMControl"]
    with pytest.raises(UserError, match=words):
        node().control(**defaults_of(node) | {name: text})


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_the_example_workflows_fit_the_nodes(nodes: dict[str, Any], file: Path) -> None:
    workflow = json.loads(file.read_text())
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for node in by_id.values():
        if node["type"] in BUILT_IN:
            connections, outputs = BUILT_IN[node["type"]]
        else:
            entry = nodes[node["type"]]
            forms, outputs = inputs_of(entry), entry.RETURN_TYPES
            connections = {name: form[0] for name, form in forms.items() if name not in defaults_of(entry)}
            values = list(node["widgets_values"])
            for name, form in forms.items():
                if name in connections:
                    continue
                value, options = values.pop(0), form[1] if len(form) > 1 else {}
                assert value in form[0] if isinstance(form[0], list) else isinstance(value, type(options["default"]))
                if options.get("control_after_generate"):
                    assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
            assert values == []
        assert {slot["name"]: slot["type"] for slot in node["inputs"]} == connections
        assert tuple(slot["type"] for slot in node["outputs"]) == tuple(outputs)
    for number, source, output, target, slot, kind in workflow["links"]:
        assert number in by_id[source]["outputs"][output]["links"]
        assert by_id[target]["inputs"][slot]["link"] == number
        assert by_id[source]["outputs"][output]["type"] == by_id[target]["inputs"][slot]["type"] == kind
