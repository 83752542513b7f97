"""Distillation of stage 2: one prediction instead of two for guidance, and videos in one to four steps.

The student starts as its teacher. First it learns the guided velocity for every guidance scale, which becomes an input
(2210.03142, section 3.1), then to predict the mean velocity over any interval of time (`lfdm.diffusion.mean_flow`).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lfdm.config.serialization import to_json
from lfdm.config.training import FewStepsConfig
from lfdm.data.progress import Progress
from lfdm.data.training_clips import TrainingClips, find_clips
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.mean_flow import (
    MeanVelocity,
    Velocity,
    cauchy_loss,
    composed_velocity,
    expand_times,
    mean_velocity,
    sample_instants,
    sample_intervals,
    sample_steps,
    total_derivative,
)
from lfdm.diffusion.schedulers import MotionScheduler, predicted_by
from lfdm.errors import UserError
from lfdm.folders.files import expand_home
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.batches import BatchRandomness
from lfdm.training.encoded_clips import EncodedClips
from lfdm.training.loop import train
from lfdm.training.processes import process_state
from lfdm.training.reports import RunSummary, StepReport
from lfdm.training.run import open_run
from lfdm.training.stage1 import data_setting
from lfdm.training.stage2 import ConditionedUNet, DiffusionTask, open_caches
from lfdm.training.starting import ordinary_network


class ConditionedFlowMap(ConditionedUNet):
    """A network that takes the end of an interval and the guidance scale, and its conditions."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, sample: Tensor, timesteps: Tensor, until: Tensor, rows: Tensor, latent: Tensor, guidance: Tensor
    ) -> Tensor:
        """As `ConditionedUNet.forward`, with `until` (b,) and `guidance` (b,)."""
        condition = self.condition.look_up(rows)
        return self.unet(sample, timesteps, condition, latent, until=until, guidance=guidance)


class FewStepsTask(DiffusionTask):
    """The training task of a flow map."""

    config: FewStepsConfig

    def __init__(
        self,
        pipeline: LatentFlowPipeline,
        teacher: MotionUNet3D,
        config: FewStepsConfig,
        clips: TrainingClips,
        encoded: EncodedClips | None,
    ) -> None:
        super().__init__(pipeline, config, clips, encoded)
        self.teacher = teacher.requires_grad_(False).eval()
        self.module = ConditionedFlowMap(pipeline.unet, pipeline.condition.requires_grad_(False))

    def loss(self, module: nn.Module, batch: dict[str, Tensor], randomness: BatchRandomness) -> dict[str, Tensor]:
        """Return the distillation loss of a batch (as `DiffusionTask.loss`), and the mean squared errors of velocities."""
        config, device = self.config, randomness.generator.device
        with torch.no_grad():
            clean, latent = self.observe(batch, device)
            rows = self.drop_conditions(batch["label"], randomness)
        after = randomness.step - config.guidance_steps
        time, until = randomness.sample(lambda size, generator: self._sample_times(size, after, generator).T).unbind(1)
        chances = randomness.sample(lambda size, generator: torch.rand(size, generator=generator, device=device))
        scale = torch.exp(chances * math.log(config.max_guidance))
        shape = clean.shape[1:]
        noise = randomness.sample(lambda size, generator: torch.randn(size, *shape, generator=generator, device=device))
        x = torch.lerp(clean, noise, expand_times(time, clean))
        with torch.no_grad():
            spans, target = until < time, torch.empty_like(x)
            for chosen, find in ((~spans, self._instant_target), (spans, self._interval_target)):
                if bool(chosen.any()):
                    inputs = _Inputs(*(values[chosen] for values in (x, time, until, rows, latent, scale)))
                    target[chosen] = find(inputs, after).float()
            if isinstance(self.module, FSDPModule) and after >= 0 and not bool(spans.any()):
                # Processes with shares of the weights must make equally many predictions.
                self._interval_target(_Inputs(*(values[:1] for values in (x, time, until, rows, latent, scale))), after)
        loss, error = cauchy_loss(self._student(module, rows, latent, scale)(x, time, until), target)
        instant = (~spans).float()
        return {
            "loss": loss.mean(),
            "instant_error": (instant * error).sum() / instant.sum().clamp(min=1),
            "interval_error": ((1 - instant) * error).sum() / (1 - instant).sum().clamp(min=1),
        }

    def _sample_times(self, batch_size: int, after: int, generator: torch.Generator) -> Tensor:
        """Sample t and r, (2, batch_size), of a step that is `after` the first phase; the first rows of a batch are instants."""
        kind, fraction = self.prediction_type, 1.0 if after < 0 else self.config.instant_fraction
        instants = sample_instants(batch_size, kind, generator=generator)
        if self.config.target == "composed":
            intervals = sample_steps(batch_size, kind, generator=generator)
        else:
            intervals = sample_intervals(batch_size, generator=generator)
        is_instant = torch.arange(batch_size, device=generator.device) < round(fraction * batch_size)
        return torch.where(is_instant, instants, intervals)

    def _student(self, module: nn.Module, rows: Tensor, latent: Tensor, scale: Tensor) -> MeanVelocity:
        def predict(sample: Tensor, timesteps: Tensor, until: Tensor) -> Tensor:
            return module(sample, timesteps, until, rows, latent, scale)

        return lambda x, time, until: mean_velocity(predict, x, time, until, self.prediction_type)

    def _teacher(self, rows: Tensor, latent: Tensor, scale: Tensor) -> Velocity:
        """Return the guided velocity of the teacher, v_null + scale * (v_condition - v_null)."""
        if self.teacher.device != latent.device:
            self.teacher.to(latent.device)
        look_up = self.pipeline.condition.look_up
        both = torch.cat((look_up(torch.full_like(rows, -1)), look_up(rows)))

        def predict(sample: Tensor, timesteps: Tensor, until: Tensor) -> Tensor:
            del until
            without, with_condition = self.teacher(sample, timesteps, both, latent).chunk(2)
            return torch.lerp(without, with_condition, expand_times(scale, without).to(without.dtype))

        return lambda x, time: mean_velocity(predict, x, time, time, self.prediction_type)

    def _instant_target(self, inputs: "_Inputs", after: int) -> Tensor:
        del after
        return self._teacher(inputs.rows, inputs.latent, inputs.scale)(inputs.x, inputs.time)

    def _interval_target(self, inputs: "_Inputs", after: int) -> Tensor:
        known = inputs.rows, inputs.latent, inputs.scale
        teacher = self._teacher(*known)
        student = self._student(self.module, *known)  # no DDP, whose processes need not make equally many predictions
        x, time, until = inputs.x, inputs.time, inputs.until
        if self.config.target == "composed":
            return composed_velocity(teacher, student, x, time, until)
        weight = min(1.0, (after + 1) / max(1, self.config.tangent_warmup_steps))
        with torch.autocast(x.device.type, enabled=False):  # finite differences need float32
            velocity = teacher(x, time)
            change = total_derivative(student, x, time, until, velocity)
        return velocity - weight * expand_times(time - until, x) * change


class _Inputs(NamedTuple):
    """Some samples of a batch."""

    x: Tensor
    time: Tensor
    until: Tensor
    rows: Tensor
    latent: Tensor
    scale: Tensor


def train_few_steps(
    model: str | Path,
    data: str | Path,
    out: Path,
    config: FewStepsConfig,
    *,
    cache_gb: float | None = None,
    report: Callable[[StepReport], None] | None = None,
    summary: Callable[[RunSummary], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Distill `model` on the training clips of `data` and return the last checkpoint in the run folder `out`.

    The same call resumes. `LatentFlowPipeline.from_pretrained` loads `out` as soon as it holds a checkpoint.

    Args:
        model: the teacher: bundled name, pipeline folder, diffusion run folder or Hub repository.
        cache_gb: see `find_clips`.
        report: called with the metrics every `log_steps`.
        summary: called before the first step, and again once time and memory can be estimated.
        progress: called while clips are decoded, their motion is estimated and their first frames are encoded.

    Raises:
        UserError: a teacher that cannot be distilled, no training clips, labels that the teacher does not know, settings that
            contradict the run in `out`, or another process that uses `out`.
        FileNotFoundError: no such data set or model.
    """
    out, source = expand_home(out), find_clips(data, cache_gb)
    settings = {"stage": "few-steps", "model": str(model), "data": data_setting(data), "few_steps": to_json(config)}
    with open_run(out, settings, batch_size=config.optimization.batch_size) as run:
        teacher = load_teacher(model)
        student = make_student(teacher, config)
        stage1 = teacher.autoencoder.requires_grad_(False).to(process_state().device)
        size, fit = teacher.size, teacher.config["fit"]
        clips, encoded = open_caches(stage1, config, source, size=size, fit=fit, progress=progress)
        run.write(student)
        assert isinstance(teacher.unet, MotionUNet3D)
        task = FewStepsTask(student, teacher.unet, config, clips, encoded)
        return train(task, config.optimization, out, report=report, summary=summary)


def load_teacher(model: str | Path) -> LatentFlowPipeline:
    """Load a pipeline to distill; the network of one that is distilled already becomes an ordinary one.

    Raises:
        UserError: another network than `MotionUNet3D`, or one that predicts noise or follows tracks.
    """
    teacher = LatentFlowPipeline.from_pretrained(model)
    if not isinstance(teacher.unet, MotionUNet3D):
        raise UserError(f"model must have a MotionUNet3D to distill; got {type(teacher.unet).__name__}")
    if predicted_by(teacher.scheduler) == "epsilon":
        raise UserError("model must predict velocity or v_prediction to be distilled; got 'epsilon'")
    if teacher.unet.track_inputs:
        raise UserError("model must have track_inputs=False to be distilled; got one that follows tracks")
    teacher.unet = ordinary_network(teacher.unet)
    return teacher


def make_student(teacher: LatentFlowPipeline, config: FewStepsConfig) -> LatentFlowPipeline:
    """Return a pipeline with the teacher's components and a flow map that starts with its weights."""
    unet = teacher.unet
    settings = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    flow_map = MotionUNet3D(**{**settings, "flow_map": True, "max_guidance": config.max_guidance})
    flow_map.load_state_dict({**flow_map.state_dict(), **unet.state_dict()})
    return LatentFlowPipeline.from_pipe(
        teacher,
        unet=flow_map,
        scheduler=MotionScheduler(prediction_type=predicted_by(teacher.scheduler), sampler="flow_map"),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=min(max(teacher.config["guidance_scale"], 1.0), config.max_guidance),
    )
