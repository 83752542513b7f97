"""The public interface, called as docs and other people's code call it, on the bundled model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from lfdm import LatentFlowAutoencoder, LatentFlowPipeline, Motion, MotionUNet3D
from lfdm.config.presets import Preset
from lfdm.errors import UserError
from lfdm.folders.sources import bundled_images

STEPS = 2


@pytest.fixture(scope="module")
def pipe() -> LatentFlowPipeline:
    pipe = LatentFlowPipeline.from_pretrained("puppets64")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(bundled_images("puppets64")[0]).convert("RGB")


def test_one_call_with_every_argument(pipe: LatentFlowPipeline, picture: Image.Image) -> None:
    out = pipe(
        picture,
        "wave",
        num_frames=6,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pil",
        callback_on_step_end=None,
    )
    assert len(out.frames) == len(out.warped) == 1
    assert len(out.frames[0]) == len(out.warped[0]) == 6
    frame = out.frames[0][0]
    assert isinstance(frame, Image.Image)
    assert np.array_equal(np.asarray(frame), np.asarray(picture))
    size = out.motion.flow.shape[-1]
    assert out.motion.flow.shape == (1, 2, 6, size, size)
    assert out.motion.occlusion.shape == (1, 1, 6, size, size)
    assert out.motion.corners is False


def test_folders_presets_and_devices(pipe: LatentFlowPipeline, tiny_preset: Preset, tmp_path: Path) -> None:
    assert isinstance(pipe.autoencoder, LatentFlowAutoencoder)
    assert isinstance(pipe.unet, MotionUNet3D)
    assert pipe.to("cpu") is pipe
    pipe.save_pretrained(tmp_path / "folder")
    again = LatentFlowPipeline.from_pretrained(str(tmp_path / "folder"))
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), again.unet.parameters(), strict=True))
    assert LatentFlowPipeline.from_preset(tiny_preset, ["wave"]).config["image_size"] == tiny_preset.image_size


@torch.no_grad()
def test_the_components_work_on_their_own(pipe: LatentFlowPipeline, picture: Image.Image) -> None:
    ae = pipe.autoencoder
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    driving = image.roll(2, dims=3)
    features = ae.encode(image)
    b, channels, h, w = features.latent.shape
    one = ae.estimate_motion(image, driving)
    clip = torch.stack((image, driving, image), dim=2)
    motion = ae.estimate_motion(image, clip)
    assert one.grid().shape == (1, 1, h, w, 2)
    assert motion.grid().shape == (1, 3, h, w, 2)
    torch.testing.assert_close(motion.flow[:, :, 1:2], one.flow, atol=1e-4, rtol=0)
    decoded = ae.decode(features, motion)
    assert decoded.prediction.shape == decoded.warped.shape == clip.shape
    for grid, occlusion in ((one.grid(), one.occlusion), (one.grid()[:, 0], one.occlusion[:, :, 0])):
        torch.testing.assert_close(Motion.from_grid(grid, occlusion, corners=False).flow, one.flow, atol=1e-6, rtol=0)
        with pytest.raises(UserError, match=r"motion must have corners=False.*got corners=True"):
            ae.decode(features, Motion.from_grid(grid, occlusion, corners=True))
    condition = pipe.embed_condition(["wave", None])
    assert condition.shape == (2, pipe.unet.config["condition_dim"])
    sample = torch.randn(2, 3, 4, h, w)
    latent = features.latent.expand(2, -1, -1, -1)
    assert latent.shape == (2 * b, channels, h, w)
    by_tensor = pipe.unet(sample, torch.tensor([500, 500]), condition, latent)
    assert by_tensor.shape == sample.shape
    torch.testing.assert_close(by_tensor, pipe.unet(sample, 500, condition, latent))


@pytest.mark.parametrize("condition", ["wave", ["wave"], None, "embedding"])
def test_every_kind_of_condition(pipe: LatentFlowPipeline, picture: Image.Image, condition: object) -> None:
    given = pipe.embed_condition("wave") if condition == "embedding" else condition
    out = pipe([picture], given, num_frames=2, num_inference_steps=1, output_type="uint8")  # pyright: ignore[reportArgumentType]
    assert isinstance(out.frames, np.ndarray)
    assert out.frames.shape == (1, 2, 64, 64, 3)


def test_seeds_7_to_10_equal_four_single_runs(pipe: LatentFlowPipeline, picture: Image.Image) -> None:
    def flows(generator: object, count: int) -> torch.Tensor:
        images = [picture] * count
        return pipe(images, "wave", num_frames=4, num_inference_steps=STEPS, generator=generator).motion.flow  # pyright: ignore[reportArgumentType]

    together = flows([7, 8, 9, 10], 4)
    alone = torch.cat([flows(torch.Generator().manual_seed(seed), 1) for seed in range(7, 11)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2
    shared, same = (torch.Generator().manual_seed(3) for _ in range(2))
    in_order = torch.cat([flows(same, 1) for _ in range(2)])
    torch.testing.assert_close(flows(shared, 2), in_order, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 2, 17, 64])
def test_any_number_of_frames_up_to_four_times_the_training_length(
    pipe: LatentFlowPipeline, picture: Image.Image, num_frames: int
) -> None:
    out = pipe(picture, "kick", num_frames=num_frames, num_inference_steps=1, generator=0, output_type="pt")
    assert isinstance(out.frames, torch.Tensor)
    assert out.frames.shape == (1, num_frames, 3, 64, 64)
    assert out.frames.min() >= 0
    assert out.frames.max() <= 1


def test_another_diffusers_scheduler_takes_over(picture: Image.Image) -> None:
    pipe = LatentFlowPipeline.from_pretrained("puppets64")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert len(pipe(picture, "bow", num_frames=2, num_inference_steps=STEPS).frames[0]) == 2
