"""Sampling and training steps as in the published system, on the textbook forms of both stages."""

import torch
from torch import Tensor

from benchmarks.speed.textbook.autoencoder import PlainAutoencoder
from benchmarks.speed.textbook.unet import PlainUNet
from lfdm.autoencoder.autoencoder import Decoded
from lfdm.diffusion.guidance import make_denoiser
from lfdm.diffusion.process import add_noise, diffusion_loss, sample_timesteps
from lfdm.diffusion.schedulers import predicted_by, run_sampler
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.batches import BatchRandomness
from lfdm.training.stage1 import AutoencoderTask
from lfdm.training.stage2 import DiffusionTask


def plain_guided_prediction(
    unet: PlainUNet, sample: Tensor, timestep: Tensor, condition: Tensor, null: Tensor, latent: Tensor, scale: float
) -> Tensor:
    """Apply classifier-free guidance (2207.12598) with two calls, each with its own image latent."""
    with_condition = unet(sample, timestep, condition, latent)
    without = unet(sample, timestep, null, latent)
    return without + scale * (with_condition - without)


def plain_generation(
    pipeline: LatentFlowPipeline,
    unet: PlainUNet,
    stage1: PlainAutoencoder,
    image: Tensor,
    condition: Tensor,
    noise: Tensor,
    *,
    num_inference_steps: int,
    generators: list[torch.Generator],
) -> Decoded:
    """Sample frames (b, 3, t, H, W) for images (b, 3, H, W) and conditions (b, D) from noise (b, 3, t, h, w), without guidance.

    Uses the scheduler and the motion codec of `pipeline`, without clamping.
    """
    dtype = unet.conv_in.weight.dtype
    image, condition = image.to(dtype), condition.to(dtype)

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        return unet(sample.to(dtype), timestep, condition, stage1.encode(image)[-1]).float()

    denoise = make_denoiser(predict, predicted_by(pipeline.scheduler), lambda clean: clean)
    sample = run_sampler(pipeline.scheduler, denoise, noise, num_inference_steps, generators, lambda _, __, x: x)
    return stage1.decode(image, pipeline.motion_codec.decode(sample, noise.shape[2]))


def plain_diffusion_loss(
    task: DiffusionTask,
    unet: PlainUNet,
    stage1: PlainAutoencoder,
    batch: dict[str, Tensor],
    randomness: BatchRandomness,
) -> Tensor:
    """Return stage 2's loss of `video` (b, 3, t, H, W) uint8 and `label` (b,), with the random numbers of `task.loss`.

    As published, stage 1 estimates and decodes every frame again.
    """
    kind, generator = task.prediction_type, randomness.generator
    with torch.no_grad():
        video = batch["video"].float() / 255
        image = video[:, :, 0]
        motion = stage1.estimate_motion(image, video)
        stage1.decode(image, motion)
        clean, latent = task.pipeline.motion_codec.encode(motion).float(), stage1.encode(image)[-1]
        rows = task.drop_conditions(batch["label"], randomness)
    timesteps = sample_timesteps(len(clean), kind, generator=generator)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    condition = task.pipeline.condition.look_up(rows)
    prediction = unet(add_noise(clean, noise, timesteps, kind), timesteps, condition, latent)
    gamma = task.config.min_snr_gamma
    return diffusion_loss(prediction, clean, noise, timesteps, prediction_type=kind, min_snr_gamma=gamma).mean()


def plain_autoencoder_loss(
    task: AutoencoderTask, stage1: PlainAutoencoder, batch: dict[str, Tensor], randomness: BatchRandomness
) -> Tensor:
    """Return stage 1's loss of a batch of pairs, with the losses and random numbers of `task.loss`."""
    return task.loss(stage1, batch, randomness)["loss"]
