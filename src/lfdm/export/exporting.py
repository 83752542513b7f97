"""Exporting a pipeline's networks as ONNX or as PyTorch programs, with the rest of the pipeline as JSON.

The files, of height H and width W of the model, with a latent of h x w cells, b samples and t frames, float32:
    encoder    image (b, 3, H, W) in [0, 1] -> scale_0 (b, c, H, W), scale_1, ..., the last one being the latent (b, C, h, w)
    denoiser   sample (b, 3, t, h, w), timestep (b,), condition (b, D), latent (b, C, h, w) -> prediction (b, 3, t, h, w);
               distilled ones also take until (b,), a timestep, and guidance (b,); those that follow tracks also take tracks
    tracks     only of models that follow tracks: source (m, 2), position (m, 2), frame (m,) int64 of points as in
               `lfdm.motion.tracks`, at least one, and a sample for its size -> tracks (1, c, t, h, w) for the denoiser
    decoder    image, scale_0, ..., flow (b, 2, t, h, w), occlusion (b, 1, t, h, w) -> frames and warped, (b, 3, t, H, W) each
    predictor  source (b, 3, H, W), driving (b, 3, H, W) -> flow (b, 2, 1, h, w), occlusion (b, 1, 1, h, w)
`pipeline.json` holds labels and their embeddings, the codec, the noise schedule and the defaults of a call; see
`lfdm.export.runtime`, which reads all of it.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from lfdm.autoencoder.autoencoder import Features, LatentFlowAutoencoder
from lfdm.config.models import TRACK_CHANNELS
from lfdm.data.free_motion import FREE_LABEL
from lfdm.denoiser.network import DenoiserNetwork
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.process import alphas_cumprod, max_sampling_steps, sampling_levels
from lfdm.diffusion.schedulers import MotionScheduler, scheduler_name
from lfdm.errors import MissingExtraError, UserError
from lfdm.export.runtime import FORMAT_VERSION, PIPELINE_FILE, SAMPLERS
from lfdm.folders.files import check_holds_only, replacing_folder
from lfdm.motion.codec import FrameCodec
from lfdm.motion.motion import Motion
from lfdm.motion.tracks import track_maps
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.pipeline.track_control import CORRECTION_RADIUS, MAX_CORRECTED_SHARE, MAX_CORRECTION, NUM_REFINEMENTS, RIDGE

ExportFormat = Literal["onnx", "torch"]
"""ONNX, or programs of `torch.export` (`.pt2`)."""
WeightType = Literal["float32", "float16"]
"""Number format in which ONNX files store weights; they compute in float32."""
SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "torch": ".pt2"}
EXAMPLE_BATCH, EXAMPLE_FRAMES = 2, 5
"""Sizes of the inputs with which networks are traced; the programs take others."""
MIN_HALF_VALUES = 256
"""Smaller tensors keep float32: biases and gains, which cost no space."""
PARTS = ("encoder", "denoiser", "decoder", "predictor")
TRACKS = "tracks"
"""The part that only models which follow tracks have."""
EXAMPLE_POINTS = 7


@dataclass(frozen=True, eq=False)
class _Part:
    """A network to export, with example inputs."""

    module: nn.Module
    inputs: tuple[Any, ...]
    axes: tuple[Any, ...]
    """The dynamic axes of each input."""
    input_names: Sequence[str]
    output_names: Sequence[str]


def export_pipeline(
    pipe: LatentFlowPipeline, folder: Path, *, form: ExportFormat = "onnx", weights: WeightType = "float32"
) -> list[Path]:
    """Write a pipeline's networks and its `pipeline.json` to `folder`, which is replaced if it holds an export.

    Returns:
        The files.

    Raises:
        UserError: a pipeline that cannot be exported: a scheduler or codec that the runtime does not have, labels that need a
            text encoder, another network; `float16` with the format `torch`; or torch 2.6.
        MissingExtraError: onnx is not installed.
    """
    _check(pipe, form, weights)
    suffix = SUFFIXES[form]
    possible = [f"{part}{ending}" for part in (*PARTS, TRACKS) for ending in SUFFIXES.values()]
    check_holds_only(folder, [*possible, PIPELINE_FILE], "an export")
    pipe.to("cpu", torch.float32)
    parts = {f"{name}{suffix}": part for name, part in _parts(pipe).items()}
    with replacing_folder(folder) as temporary, torch.no_grad(), _quiet():
        for name, part in parts.items():
            program = export(part.module.eval(), part.inputs, dynamic_shapes=part.axes)
            if form == "torch":
                torch.export.save(program, temporary / name)
            else:
                _write_onnx(program, part, temporary / name)
                if weights == "float16":
                    halve_weights(temporary / name)
        (temporary / PIPELINE_FILE).write_text(json.dumps(_settings(pipe, suffix), indent=1, ensure_ascii=False))
    return [folder / name for name in (*parts, PIPELINE_FILE)]


def _check(pipe: LatentFlowPipeline, form: ExportFormat, weights: WeightType) -> None:
    if not hasattr(torch.compiler, "is_exporting"):
        raise UserError(f"exporting needs torch 2.7 or newer; got {torch.__version__}")
    scheduler, codec = pipe.scheduler, pipe.motion_codec
    if not isinstance(scheduler, MotionScheduler) or scheduler.sampler not in SAMPLERS:
        allowed = ", ".join(SAMPLERS)
        raise UserError(f"the model's sampler must be one of {allowed} to be exported; got {scheduler_name(scheduler)}")
    if not isinstance(codec, FrameCodec):
        raise UserError(f"the model's codec must be FrameCodec to be exported; got {type(codec).__name__}")
    if not isinstance(pipe.unet, MotionUNet3D):
        raise UserError(f"the model's network must be MotionUNet3D to be exported; got {type(pipe.unet).__name__}")
    if not pipe.condition.labels:
        raise UserError("the model must have labels to be exported; it has none")
    if weights != "float32" and form == "torch":
        raise UserError(f"weights must be float32 with the format torch; got {weights}")
    if form == "onnx":
        try:
            import onnxscript  # noqa: F401 - torch's exporter needs it
        except ImportError as error:
            raise MissingExtraError("ONNX needs onnx and onnxscript: pip install 'lfdm[onnx]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide messages of torch's exporter that are meant for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Encoder(nn.Module):
    def __init__(self, autoencoder: LatentFlowAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(scale.contiguous() for scale in self.autoencoder.encode(image).scales)


class _Denoiser(nn.Module):
    """One prediction; in clips longer than those of training, frames attend to as many others as there."""

    def __init__(self, unet: DenoiserNetwork, num_frames: int) -> None:
        super().__init__()
        self.unet, self.num_frames = unet, num_frames
        flags = {"until": unet.flow_map, "guidance": unet.max_guidance is not None, TRACKS: unet.track_inputs}
        self.additional = [name for name, is_input in flags.items() if is_input]
        """The names of inputs that only distilled networks or those that follow tracks have."""

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor, latent: Tensor, more: tuple[Tensor, ...]) -> Tensor:
        additional = dict(zip(self.additional, more, strict=True))
        return self.unet(sample, timestep, condition, latent, attention_frames=self.num_frames, **additional)


class _Tracks(nn.Module):
    def forward(self, source: Tensor, position: Tensor, frame: Tensor, sample: Tensor) -> Tensor:
        return track_maps(source, position, frame, (sample.shape[2], sample.shape[3], sample.shape[4]))[None]


class _Decoder(nn.Module):
    def __init__(self, autoencoder: LatentFlowAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor, scales: tuple[Tensor, ...], flow: Tensor, occlusion: Tensor) -> tuple[Tensor, Tensor]:
        motion = Motion(flow, occlusion, self.autoencoder.corners)
        decoded = self.autoencoder.decode(Features(image, tuple(scales)), motion)
        return decoded.prediction, decoded.warped


class _Predictor(nn.Module):
    def __init__(self, autoencoder: LatentFlowAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, source: Tensor, driving: Tensor) -> tuple[Tensor, Tensor]:
        motion = self.autoencoder.estimate_motion(source, driving.unsqueeze(2))
        return motion.flow, motion.occlusion


def _parts(pipe: LatentFlowPipeline) -> dict[str, _Part]:
    """Return the networks by name, with random inputs of the right shapes."""
    autoencoder, b, t = pipe.autoencoder, EXAMPLE_BATCH, EXAMPLE_FRAMES
    image = torch.rand(b, 3, *pipe.size)
    scales = tuple(scale.contiguous() for scale in autoencoder.encode(image).scales)
    latent = scales[-1]
    h, w = latent.shape[-2:]
    flow, occlusion = 0.1 * torch.randn(b, 2, t, h, w), torch.rand(b, 1, t, h, w)
    noise = torch.randn(b, *pipe.motion_codec.sample_shape(t, h, w))
    timestep, condition = torch.full((b,), 500.0), torch.randn(b, pipe.condition.dim)
    denoiser = _Denoiser(pipe.unet, pipe.config["num_frames"])
    batch = {0: Dim("batch", min=1)}
    clip = {**batch, 2: Dim.AUTO}
    maps = torch.randn(b, TRACK_CHANNELS, t, h, w)
    more = {"until": (timestep / 2, batch), "guidance": (torch.full((b,), 1.5), batch), TRACKS: (maps, clip)}
    more = [more[name] for name in denoiser.additional]
    names = [f"scale_{i}" for i in range(len(scales))]
    parts = {
        "encoder": _Part(_Encoder(autoencoder), (image,), (batch,), ["image"], names),
        "denoiser": _Part(
            denoiser,
            (noise, timestep, condition, latent, tuple(value for value, _ in more)),
            (clip, batch, batch, batch, tuple(axes for _, axes in more)),
            ["sample", "timestep", "condition", "latent", *denoiser.additional],
            ["prediction"],
        ),
        "decoder": _Part(
            _Decoder(autoencoder),
            (image, scales, flow, occlusion),
            (batch, tuple(batch for _ in scales), clip, clip),
            ["image", *names, "flow", "occlusion"],
            ["frames", "warped"],
        ),
        "predictor": _Part(
            _Predictor(autoencoder), (image, image.flip(-1)), (batch, batch), ["source", "driving"], ["flow", "occlusion"]
        ),
    }
    if pipe.unet.track_inputs:
        place, frame, points = torch.rand(EXAMPLE_POINTS, 2), torch.arange(EXAMPLE_POINTS) % t, {0: Dim("points", min=1)}
        inputs, axes = (place, place.flip(-1), frame, noise), (points, points, points, clip)
        parts[TRACKS] = _Part(_Tracks(), inputs, axes, ["source", "position", "frame", "sample"], [TRACKS])
    return parts


def _write_onnx(program: ExportedProgram, part: _Part, path: Path) -> None:
    import onnx

    exported: Any = torch.onnx.export(
        program, dynamo=True, input_names=part.input_names, output_names=part.output_names, verbose=False
    )
    model = exported.model_proto
    for holder in (model, model.graph, *model.functions):
        for entry in (holder, *getattr(holder, "node", ()), *getattr(holder, "initializer", ())):
            entry.ClearField("metadata_props")  # where each node comes from in Python: megabytes
    del model.graph.value_info[:]
    onnx.save_model(model, path)


def halve_weights(path: Path) -> None:
    """Store the large tensors of an ONNX file in half precision, each followed by a cast to float32."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_model(path)
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= MIN_HALF_VALUES:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save_model(model, path)


def _settings(pipe: LatentFlowPipeline, suffix: str) -> dict[str, Any]:
    """Return the content of `pipeline.json`."""
    scheduler, codec, condition = pipe.scheduler, pipe.motion_codec, pipe.condition
    assert isinstance(codec, FrameCodec)
    kind = scheduler.prediction_type
    schedule: dict[str, Any] = {"prediction_type": kind, "sampler": scheduler.sampler, "max_steps": max_sampling_steps(kind)}
    if kind != "velocity":
        schedule |= {"alphas_cumprod": alphas_cumprod().tolist(), "first_timestep": int(sampling_levels(kind, 1)[0].timestep)}
    config = ("num_frames", "fps", "num_inference_steps", "guidance_scale", "fit")
    return {
        "version": FORMAT_VERSION,
        "files": {part: f"{part}{suffix}" for part in (*PARTS, *([TRACKS] if pipe.unet.track_inputs else []))},
        "image_size": list(pipe.size),
        **{name: pipe.config[name] for name in config},
        "schedule": schedule,
        "network": {"flow_map": pipe.unet.flow_map, "max_guidance": pipe.unet.max_guidance},
        "tracks": _track_settings(pipe) if pipe.unet.track_inputs else None,
        "codec": {name: codec.config[name] for name in ("kind", "corners", "still_first_frame", "mean", "std", "low", "high")},
        "labels": list(condition.labels),
        "embeddings": pipe.embed_condition(list(condition.labels)).tolist(),
        "null_embedding": pipe.embed_condition([None])[0].tolist(),
    }


def _track_settings(pipe: LatentFlowPipeline) -> dict[str, Any]:
    """Return what `lfdm.export.dragging` needs to know."""
    return {
        "max_correction": MAX_CORRECTION,
        "max_corrected_share": MAX_CORRECTED_SHARE,
        "correction_radius": CORRECTION_RADIUS,
        "ridge": RIDGE,
        "refinements": NUM_REFINEMENTS,
        "free_label": FREE_LABEL if FREE_LABEL in pipe.condition.labels else None,
    }
