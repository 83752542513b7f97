"""An exported pipeline in NumPy and ONNX Runtime. Imports no torch.

The steps are those of `lfdm.pipeline`; a reader who ports them to another language needs this file and `pipeline.json` only.

Shapes: image (H, W, 3) uint8 · frames (t, H, W, 3) uint8 · see `lfdm.export.exporting` for the networks.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lfdm.config.checks import MAX_SEED, check_integer, check_number
from lfdm.config.control import Control
from lfdm.config.diffusion import MAX_GUIDANCE_SCALE
from lfdm.config.video import Size
from lfdm.data.fitting import fit_frames
from lfdm.data.pictures import read_picture
from lfdm.errors import MissingExtraError, UserError
from lfdm.export.dragging import PlacedPoints, observed

FORMAT_VERSION = 3
PIPELINE_FILE = "pipeline.json"
MAX_FRAME_FACTOR = 4
"""Longest video, in lengths of a training clip."""
MAX_STRAIGHT_SIGMA = 0.999
NUM_TRAIN_TIMESTEPS = 1000

Array = np.ndarray
"""float32."""
Denoise = Callable[[Array, "Level", "Level"], Array]
"""x0 as a function of a noisy sample, its level and the level of the end of the step, which only flow maps see."""


@dataclass(frozen=True)
class Level:
    """A noise level: x = alpha x0 + sigma noise, at a timestep of the network."""

    timestep: float
    alpha: float
    sigma: float


class OnnxPipeline:
    """Makes videos with a folder that `lfdm export --format onnx` has written.

    Args:
        folder: the folder.
        num_threads: threads of each network; 0 = as many as there are cores.

    Raises:
        UserError: not such a folder, or one of another version.
        FileNotFoundError: a file is missing.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, folder: str | Path, *, num_threads: int = 0) -> None:
        self.settings = _read_settings(Path(folder))
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("an exported model needs ONNX Runtime: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._networks = {
            name: onnxruntime.InferenceSession(Path(folder) / file, options, providers=["CPUExecutionProvider"])
            for name, file in self.settings["files"].items()
        }
        self.labels: list[str] = self.settings["labels"]
        self.size = Size(*self.settings["image_size"])

    def __call__(
        self,
        image: str | Path | Image.Image | np.ndarray,
        condition: str | Mapping[str, float] | None = None,
        *,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        noise: np.ndarray | None = None,
        control: Control | None = None,
    ) -> NDArray[np.uint8]:
        """Make a video (t, H, W, 3) uint8 of an image under a condition.

        Args:
            image: path, PIL image or array; fitted to the model's size.
            condition: a label, a mix of labels with weights, or None = unconditional.
            num_frames, num_inference_steps, guidance_scale: as of `LatentFlowPipeline`; None = the model's.
            seed: of the noise, which is not that of PyTorch.
            noise: (3, t, h, w) of unit variance instead.
            control: drags and pins, for models that follow tracks.

        Raises:
            UserError: a value that is not allowed, or not an image.
        """
        settings = self.settings
        t = _or_default(num_frames, settings["num_frames"])
        check_integer("num_frames", t, 1, MAX_FRAME_FACTOR * settings["num_frames"])
        steps = _or_default(num_inference_steps, settings["num_inference_steps"])
        check_integer("num_inference_steps", steps, 1, settings["schedule"]["max_steps"])
        scale = self._check_guidance(_or_default(guidance_scale, settings["guidance_scale"]))
        picture, points = self._fit(image), self._place(control, image, t)
        if points is not None and condition is None:
            condition = settings["tracks"]["free_label"]
        embedding, null = self._embed(condition), self._embed(None)
        scales = self._run("encoder", image=picture)
        latent = scales[-1]
        shape = (1, 3, t, *latent.shape[-2:])
        known = {"latent": latent}
        if settings["tracks"] is not None:
            sample = np.zeros(shape, np.float32)
            drawn = observed() if points is None else points.observed(latent.shape[-2:])
            (known["tracks"],) = self._run("tracks", sample=sample, **drawn)
        denoise = self._denoiser(known, embedding, null, 1.0 if condition is None else scale)
        start = np.random.default_rng(check_integer("seed", seed, 0, MAX_SEED)).standard_normal(shape, np.float32)
        if noise is not None:
            start = np.asarray(noise, np.float32).reshape(shape)
        sample = self._clamp(SAMPLERS[settings["schedule"]["sampler"]](denoise, start, self._levels(steps)))
        flow, occlusion = self._to_motion(sample)
        if points is not None:
            flow = points.correct(flow, self.size, self.settings["tracks"])
        return self._decode(picture, scales, flow, occlusion)

    def transfer(self, image: str | Path | Image.Image | np.ndarray, driving: Iterable[np.ndarray]) -> NDArray[np.uint8]:
        """Move an image as driving frames (H, W, 3) uint8 move, each against the image: (t, H, W, 3) uint8.

        Raises:
            UserError: not an image, or no driving frames.
        """
        picture = self._fit(image)
        scales = self._run("encoder", image=picture)
        motions = [self._run("predictor", source=picture, driving=self._fit(frame)) for frame in driving]
        if not motions:
            raise UserError("driving must have at least one frame; got none")
        flow, occlusion = (np.concatenate(parts, axis=2) for parts in zip(*motions, strict=True))
        return self._decode(picture, scales, flow, occlusion)

    def _check_guidance(self, scale: float) -> float:
        largest = self.settings["network"]["max_guidance"]
        low, high = (0, MAX_GUIDANCE_SCALE) if largest is None else (1, largest)
        return check_number("guidance_scale", scale, low=0 if scale == 0 else low, high=high)

    def _run(self, name: str, **inputs: Array) -> list[Array]:
        results: Any = self._networks[name].run(None, inputs)
        return results

    def _fit(self, image: Any) -> Array:
        """Return an image (1, 3, H, W) in [0, 1]."""
        picture = read_picture(image)
        return _to_planes(fit_frames(picture[None], self.size, self.settings["fit"]))

    def _embed(self, condition: str | Mapping[str, float] | None) -> Array:
        """Return the embedding (1, D) of a condition."""
        if condition is None:
            return np.array([self.settings["null_embedding"]], np.float32)
        weights = {condition: 1.0} if isinstance(condition, str) else dict(condition)
        unknown = [label for label in weights if label not in self.labels]
        if unknown:
            raise UserError(f"unknown label {unknown[0]!r}; allowed: {', '.join(self.labels)}")
        total = sum(weights.values())
        if not (all(0 <= weight < math.inf for weight in weights.values()) and total > 0):
            raise UserError(f"weights of a mix must be 0 or more, and not all 0; got {weights}")
        rows = np.array([self.settings["embeddings"][self.labels.index(label)] for label in weights])
        return (np.array([*weights.values()]) @ rows / total).astype(np.float32)[None]

    def _levels(self, steps: int) -> list[Level]:
        """Return the noise levels from (nearly) pure noise to clean; see `lfdm.diffusion.process.sampling_levels`."""
        schedule = self.settings["schedule"]
        if schedule["prediction_type"] == "velocity":
            sigmas = [MAX_STRAIGHT_SIGMA * (1 - i / steps) for i in range(steps)]
            levels = [Level(NUM_TRAIN_TIMESTEPS * sigma, 1 - sigma, sigma) for sigma in sigmas]
        else:
            timesteps = [round(schedule["first_timestep"] * (steps - i) / steps) for i in range(steps)]
            abars = [schedule["alphas_cumprod"][t] for t in timesteps]
            levels = [Level(t, math.sqrt(abar), math.sqrt(1 - abar)) for t, abar in zip(timesteps, abars, strict=True)]
        return [*levels, Level(0.0, 1.0, 0.0)]

    def _place(self, control: Control | None, image: Any, num_frames: int) -> PlacedPoints | None:
        """Return the drags and pins of a control over an image."""
        if control is None or control == Control():
            return None
        if self.settings["tracks"] is None:
            raise UserError("control needs a model that follows tracks; this one does not")
        picture = Size(*read_picture(image).shape[:2])
        fps = self.settings["fps"]
        return PlacedPoints.place(control, picture, self.size, self.settings["fit"], num_frames=num_frames, fps=fps)

    def _denoiser(self, inputs: dict[str, Array], condition: Array, null: Array, scale: float) -> Denoise:
        """Return the denoiser, under guidance: one prediction where the network takes the scale, otherwise two.

        Args:
            inputs: the latent, and maps of tracks, which guidance moves away from, too.
        """
        schedule, network = self.settings["schedule"], self.settings["network"]
        takes_scale = network["max_guidance"] is not None
        guided = condition if scale == 1 or takes_scale else np.concatenate((null, condition))
        conditions = null if scale == 0 else guided
        b = len(conditions)
        kind, is_flow_map = schedule["prediction_type"], schedule["sampler"] == "flow_map"
        known = {"condition": conditions, **{name: np.repeat(values, b, axis=0) for name, values in inputs.items()}}
        if b > 1 and "tracks" in known:
            known["tracks"][0] = 0
        if takes_scale:
            known["guidance"] = np.full(b, max(scale, 1), np.float32)

        def denoise(x: Array, level: Level, end: Level) -> Array:
            inputs = {"sample": np.repeat(x, b, axis=0), "timestep": np.full(b, level.timestep, np.float32)}
            if network["flow_map"]:
                inputs["until"] = np.full(b, (end if is_flow_map else level).timestep, np.float32)
            (predicted,) = self._run("denoiser", **inputs, **known)
            if len(predicted) == 2:
                predicted = predicted[:1] + np.float32(scale) * (predicted[1:] - predicted[:1])
            return self._clamp(_clean(predicted, x, level, kind))

        return denoise

    def _clamp(self, sample: Array) -> Array:
        """Clamp a clean sample to the range of the training data."""
        codec = self.settings["codec"]
        if codec["low"] is None:
            return sample
        low, high = _channels(codec["low"]), _channels(codec["high"])
        if codec["mean"] is not None:
            mean, std = _channels(codec["mean"]), _channels(codec["std"])
            low, high = (low - mean) / std, (high - mean) / std
        return np.clip(sample, low, high)

    def _to_motion(self, sample: Array) -> tuple[Array, Array]:
        """Return flow (1, 2, t, h, w) and occlusion (1, 1, t, h, w) of a clean sample; see `lfdm.motion.codec.FrameCodec`."""
        codec = self.settings["codec"]
        if codec["mean"] is not None:
            sample = sample * _channels(codec["std"]) + _channels(codec["mean"])
        flow, occlusion = sample[:, :2], np.clip((sample[:, 2:] + 1) / 2, 0, 1)
        if codec["kind"] == "grid":
            flow = flow - _identity(*flow.shape[-2:], corners=codec["corners"])
        if codec["still_first_frame"]:
            flow, occlusion = flow.copy(), occlusion.copy()
            flow[:, :, 0], occlusion[:, :, 0] = 0, 1
        return flow, occlusion

    def _decode(self, picture: Array, scales: list[Array], flow: Array, occlusion: Array) -> NDArray[np.uint8]:
        named = {f"scale_{i}": scale for i, scale in enumerate(scales)}
        inputs = {"image": picture, **named, "flow": flow, "occlusion": occlusion}
        inputs = {one.name: inputs[one.name] for one in self._networks["decoder"].get_inputs()}
        frames = self._run("decoder", **inputs)[0]
        return np.rint(frames[0].transpose(1, 2, 3, 0) * 255).astype(np.uint8)


def euler(denoise: Denoise, x: Array, levels: list[Level]) -> Array:
    """Sample by Euler's method; see `lfdm.diffusion.samplers.euler`."""
    for now, then in pairwise(levels):
        x = _advance(x, denoise(x, now, then), now, then)
    return x


def dpmpp_2m(denoise: Denoise, x: Array, levels: list[Level]) -> Array:
    """Sample by DPM-Solver++(2M) (2211.01095, algorithm 2); see `lfdm.diffusion.samplers.dpmpp_2m`."""
    before, last = None, None
    for now, then in pairwise(levels):
        clean = extrapolated = denoise(x, now, then)
        if before is not None and last is not None and then.sigma > 0:
            ratio = (_log_snr(then) - _log_snr(now)) / (_log_snr(now) - _log_snr(last))
            extrapolated = clean + np.float32(ratio / 2) * (clean - before)
        x = _advance(x, extrapolated, now, then)
        before, last = clean, now
    return x


SAMPLERS = {"euler": euler, "ddim": euler, "dpmpp_2m": dpmpp_2m, "flow_map": euler}
"""The samplers of exported models; DDIM without noise is Euler's method, as is `flow_map`, whose network sees each step's end."""


def _advance(x: Array, clean: Array, now: Level, then: Level) -> Array:
    shrink = then.sigma / now.sigma
    return np.float32(shrink) * x + np.float32(then.alpha - now.alpha * shrink) * clean


def _log_snr(level: Level) -> float:
    return math.log(level.alpha / level.sigma)


def _clean(predicted: Array, x: Array, level: Level, kind: str) -> Array:
    """Return the x0 that follows from a prediction; see `lfdm.diffusion.process`."""
    alpha, sigma = np.float32(level.alpha), np.float32(level.sigma)
    if kind == "epsilon":
        return (x - sigma * predicted) / alpha
    if kind == "v_prediction":
        return alpha * x - sigma * predicted
    return x - sigma * predicted


def _identity(height: int, width: int, *, corners: bool) -> Array:
    """Return the sampling grid of no motion, (2, 1, h, w); see `lfdm.motion.warp.identity_grid`."""
    axes = [np.linspace(-1, 1, size) if corners else (2 * np.arange(size) + 1) / size - 1 for size in (height, width)]
    y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack((x, y)).astype(np.float32)[:, None]


def _channels(values: list[float]) -> Array:
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def _to_planes(frames: np.ndarray) -> Array:
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def _or_default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / PIPELINE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no exported model there; make one with `lfdm export`")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        version, files = settings["version"], settings["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the settings of an exported model ({error})") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: version must be {FORMAT_VERSION}; got {version!r}")
    if not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
        raise UserError(f"{path}: files must be names in its folder; got {files}")
    if not all(file.endswith(".onnx") for file in files.values()):
        raise UserError(f"{folder} holds an export of format torch; OnnxPipeline needs one of format onnx")
    return settings
