"""The timed operations: each as a fast form (the package's) and a plain one (textbook), with the same weights.

Shapes: image (b, 3, S, S) and video (b, 3, t, S, S) in [0, 1] · motion sample (b, 3, t, h, w).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.speed.models import Models, write_random_vgg19
from benchmarks.speed.textbook.autoencoder import PlainAutoencoder
from benchmarks.speed.textbook.training import (
    plain_autoencoder_loss,
    plain_diffusion_loss,
    plain_generation,
    plain_guided_prediction,
)
from lfdm.config.training import OptimizationConfig
from lfdm.denoiser.network import DenoiserContext
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.guidance import Guidance, guided_prediction
from lfdm.motion.motion import Motion
from lfdm.pipeline.inputs import sample_generators
from lfdm.training.batches import BatchRandomness
from lfdm.training.optimization import lay_out, make_optimizer, set_training, update_average
from lfdm.training.stage1 import AutoencoderTask
from lfdm.training.stage2 import ConditionedUNet, DiffusionTask

Calls = dict[str, Callable[[], object]]
"""Calls by form; `plain` is the reference."""

GUIDANCE_SCALE = 2.0


# Inference


def _quiet(call: Callable[[], object]) -> Callable[[], object]:
    """Wrap `call` without gradients, as the pipeline runs it."""
    return torch.no_grad()(call)


def unet_step(models: Models, batch: int) -> Calls:
    """Evaluate the U-Net once; the fast form embeds the image latent once per clip, outside the step."""
    models = models.for_inference()
    unet, plain = models.pipeline.unet, models.plain_unet()
    sample, condition = models.samples(batch).to(models.dtype), models.conditions(batch).to(models.dtype)
    latent = models.normal(batch, models.preset.unet.latent_channels, *sample.shape[-2:]).to(models.dtype)
    timestep = torch.full((batch,), 500, device=models.device)
    assert isinstance(unet, MotionUNet3D)
    with torch.no_grad():
        embedding = unet.embed_latent(latent)
    return {
        "fast": _quiet(lambda: unet(sample, timestep, condition, latent_embedding=embedding)),
        "plain": _quiet(lambda: plain(sample, timestep, condition, latent)),
    }


def guidance_step(models: Models, batch: int) -> Calls:
    """Predict one step under classifier-free guidance."""
    models = models.for_inference()
    pipeline, plain = models.pipeline, models.plain_unet()
    sample, condition = models.samples(batch), models.conditions(batch)
    latent = models.normal(batch, models.preset.unet.latent_channels, *sample.shape[-2:]).to(models.dtype)
    timestep = torch.tensor(500, device=models.device)
    null = pipeline.condition.null.to(condition).expand_as(condition)
    with torch.no_grad():
        predict = guided_prediction(
            pipeline.unet,
            DenoiserContext(condition=condition, latent=latent),
            Guidance(negative=null, scale=GUIDANCE_SCALE),
        )
    low = [x.to(models.dtype) for x in (sample, condition, null)]
    return {
        "fast": _quiet(lambda: predict(sample, timestep)),
        "plain": _quiet(lambda: plain_guided_prediction(plain, low[0], timestep, low[1], low[2], latent, GUIDANCE_SCALE)),
    }


def encode(models: Models, batch: int) -> Calls:
    """Encode the source image."""
    models = models.for_inference()
    images, autoencoder, plain = models.images(batch).to(models.dtype), models.pipeline.autoencoder, models.plain_stage1()
    return {"fast": _quiet(lambda: autoencoder.encode(images).latent), "plain": _quiet(lambda: plain.encode(images)[-1])}


def decode(models: Models, batch: int) -> Calls:
    """Decode a clip from the source image and a given motion with the pipeline, including encoding."""
    models = models.for_inference()
    pipeline, plain = models.pipeline, models.plain_stage1()
    images, motion = models.images(batch), models.motions(batch)
    low = images.to(models.dtype)
    return {
        "fast": _quiet(lambda: torch.as_tensor(pipeline.animate(images, motion, output_type="pt").frames).transpose(1, 2)),
        "plain": _quiet(lambda: plain.decode(low, motion).prediction),
    }


def extract(models: Models, batch: int) -> Calls:
    """Estimate the motion of a clip; below float32 by autocast, like the motion cache."""
    models = models.for_inference(cast=False)
    autoencoder, plain, video = models.pipeline.autoencoder, models.plain_stage1(), models.videos(batch)

    def estimate(estimator: Callable[[Tensor, Tensor], Motion]) -> Tensor:
        with models.autocast():
            return estimator(video[:, :, 0], video).flow

    return {
        "fast": _quiet(lambda: estimate(autoencoder.estimate_motion)),
        "plain": _quiet(lambda: estimate(plain.estimate_motion)),
    }


def generate(num_inference_steps: int) -> Callable[[Models, int], Calls]:
    """Generate frames from images."""

    def build(models: Models, batch: int) -> Calls:
        models = models.for_inference()
        pipeline, plain = models.pipeline, (models.plain_unet(), models.plain_stage1())
        images, condition = models.images(batch), models.conditions(batch)

        def generators() -> list[torch.Generator]:
            return [torch.Generator(models.device).manual_seed(seed) for seed in range(batch)]

        def fast() -> Tensor:
            steps = num_inference_steps
            result = pipeline(images, condition, num_inference_steps=steps, generator=generators(), output_type="pt")
            assert isinstance(result.frames, Tensor)
            return result.frames.transpose(1, 2)

        def slow() -> Tensor:
            each = sample_generators(generators(), batch)
            shape = models.samples(1).shape[1:]
            noise = torch.stack([torch.randn(shape, generator=one, device=one.device) for one in each])
            steps = num_inference_steps
            return plain_generation(
                pipeline, *plain, images, condition, noise, num_inference_steps=steps, generators=each
            ).prediction

        return {"fast": _quiet(fast), "plain": _quiet(slow)}

    return build


# Training


class TrainingStep:
    """Forward, backward, Adam and weight averaging as in `lfdm.training.loop`; the plain form uses torch's defaults.

    Gradients, optimizer state and average exist from the start and do not count as memory of a step.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[nn.Module], Tensor],
        config: OptimizationConfig,
        models: Models,
        *,
        plain: bool = False,
    ) -> None:
        self.module, self.loss, self.config, self.models = module.requires_grad_(True), loss, config, models
        set_training(module)
        if not plain:
            lay_out(module, bf16=models.dtype == torch.bfloat16)
        self.average = copy.deepcopy(module).requires_grad_(False) if config.ema_decay else None
        if plain:
            self.optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, betas=config.betas)
        else:
            self.optimizer = make_optimizer(module, config)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # creates the optimizer state; zero gradients change nothing

    def __call__(self) -> Tensor:
        with self.models.autocast():
            loss = self.loss(self.module)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            update_average(self.average, self.module, self.config.ema_decay, 0)
        return loss.detach()


def stage1_step(models: Models, batch: int) -> Calls:
    """Train stage 1 for one step on `batch` pairs."""
    config = models.preset.autoencoder_training
    if config.perceptual_weights_path is not None:
        config = replace(config, perceptual_weights_path=str(models.folder / "vgg19.pth"))
        write_random_vgg19(models.folder / "vgg19.pth")
    task = AutoencoderTask(copy.deepcopy(models.pipeline.autoencoder), config, models.clips)
    plain = PlainAutoencoder(models.pipeline.autoencoder)
    if models.compiled:
        task.module.compile()
    videos = (255 * models.videos(batch)).byte()
    pairs = {"source": videos[:, :, 0], "driving": videos[:, :, 1]}

    def randomness() -> BatchRandomness:
        return BatchRandomness.of_whole_batch(torch.Generator(models.device).manual_seed(0), batch)

    return {
        "fast": TrainingStep(
            task.module, lambda module: task.loss(module, pairs, randomness())["loss"], config.optimization, models
        ),
        "plain": TrainingStep(
            plain, lambda _: plain_autoencoder_loss(task, plain, pairs, randomness()), config.optimization, models, plain=True
        ),
    }


def stage2_step(models: Models, batch: int) -> Calls:
    """Train stage 2 for one step on `batch` clips: cached motion, the same with activation checkpointing, and without a cache.

    The plain form is the published step, without a cache.
    """
    preset = models.preset
    config = preset.diffusion_training.optimization
    videos = (255 * models.videos(batch)).byte()
    with torch.no_grad():
        images = videos[:, :, 0].float() / 255
        motion = models.pipeline.autoencoder.estimate_motion(images, videos.float() / 255)
        latent = models.pipeline.autoencoder.encode(images).latent
    label = torch.zeros(batch, dtype=torch.long, device=models.device)
    stored = torch.cat((motion.flow, motion.occlusion), dim=1).half()
    cached = {"latent": latent.half(), "motion": stored, "label": label}
    fresh = {"video": videos, "label": label}

    def randomness() -> BatchRandomness:
        return BatchRandomness.of_whole_batch(torch.Generator(models.device).manual_seed(0), batch)

    def fast(inputs: dict[str, Tensor], *, checkpointed: bool = False) -> TrainingStep:
        task = DiffusionTask(models.pipeline, preset.diffusion_training, models.clips, None)
        unet = copy.deepcopy(models.pipeline.unet)
        task.module = ConditionedUNet(unet, models.pipeline.condition)
        if checkpointed:
            unet.enable_gradient_checkpointing()
        if models.compiled:
            unet.compile()
        return TrainingStep(task.module, lambda module: task.loss(module, inputs, randomness())["loss"], config, models)

    plain, stage1 = models.plain_unet(), models.plain_stage1()
    task = DiffusionTask(models.pipeline, preset.diffusion_training, models.clips, None)

    def plain_loss(_: nn.Module) -> Tensor:
        return plain_diffusion_loss(task, plain, stage1, fresh, randomness())

    return {
        "fast": fast(cached),
        "checkpointed": fast(cached, checkpointed=True),
        "uncached": fast(fresh),
        "plain": TrainingStep(plain, plain_loss, config, models, plain=True),
    }


@dataclass(frozen=True)
class Operation:
    """Builder of the calls of one operation for a batch size."""

    build: Callable[[Models, int], Calls]
    training: bool = False


OPERATIONS: Mapping[str, Operation] = {
    "unet_step": Operation(unet_step),
    "decode": Operation(decode),
    "extract": Operation(extract),
    "stage2_step": Operation(stage2_step, training=True),
    "guidance_step": Operation(guidance_step),
    "stage1_step": Operation(stage1_step, training=True),
    "encode": Operation(encode),
    "generate_4": Operation(generate(4)),
    "generate_10": Operation(generate(10)),
    "generate_20": Operation(generate(20)),
}
"""In order of importance."""
