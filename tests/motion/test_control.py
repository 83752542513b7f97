"""Strength, masks and files of motion, in both coordinate conventions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.errors import UserError
from lfdm.motion.motion import FEATHER, Motion, feather
from lfdm.motion.warp import warp

SIZE, CELLS = 64, 32
BOTH = pytest.mark.parametrize("corners", [False, True])


def draw_motion(*, corners: bool, batch: int = 2, frames: int = 3, size: int = CELLS, length: float = 0.2) -> Motion:
    generator = torch.Generator().manual_seed(0)
    flow = length * torch.randn(batch, 2, frames, size, size, generator=generator)
    return Motion(flow, torch.rand(batch, 1, frames, size, size, generator=generator), corners)


def draw_image(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255


def build_autoencoder(*, corners: bool) -> LatentFlowAutoencoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 4, "max_channels": 8, "num_downs": 1, "num_res_blocks": 1}
    if corners:
        regions = {"type": "regions", "num_regions": 2, "channels": 4, "flow_channels": 4, "depth": 2}
        return LatentFlowAutoencoder(**sizes, predictor=regions, corners=True).eval()
    dense = {"type": "dense", "channels": (8, 8, 8, 8), "match_channels": 4}
    return LatentFlowAutoencoder(**sizes, predictor=dense, padding_mode="border", corners=False).eval()


@torch.no_grad()
def decode(motion: Motion, image: Tensor) -> Tensor:
    autoencoder = build_autoencoder(corners=motion.corners)
    return autoencoder.decode(autoencoder.encode(image), motion).prediction


# ------------------------------------------------------------------------------------------------------------ strength


@BOTH
def test_strength_1_is_the_motion_itself(corners: bool) -> None:
    motion = draw_motion(corners=corners)
    assert motion.scaled(1.0) is motion


@BOTH
def test_strength_0_is_the_image_bit_for_bit_in_every_frame(corners: bool) -> None:
    image = draw_image()
    still = draw_motion(corners=corners).scaled(0.0)
    assert torch.equal(still.flow, torch.zeros_like(still.flow))
    assert torch.equal(still.occlusion, torch.ones_like(still.occlusion))
    frames = decode(still, image)
    assert torch.equal(frames, image[:, :, None].expand_as(frames))
    if not corners:
        assert torch.equal(frames, decode(Motion.identity(2, 3, (CELLS, CELLS), corners=False), image))


def test_the_published_identity_does_not_reproduce_the_image() -> None:
    """Strength 0 must therefore remove the offset."""
    image = draw_image()
    frames = decode(Motion.identity(2, 1, (CELLS, CELLS), corners=True), image)
    assert (frames - image[:, :, None]).abs().max() > 0.1


@BOTH
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 1.7])
def test_frames_depend_continuously_on_strength(corners: bool, strength: float) -> None:
    motion, image = draw_motion(corners=corners, length=0.05), draw_image()
    here = decode(motion.scaled(strength), image)
    steps = [(decode(motion.scaled(strength + step), image) - here).abs().max() for step in (1e-3, 1e-5)]
    assert steps[0] < 0.02
    assert steps[1] < 3e-4


@BOTH
def test_strength_scales_flow_and_hidden_share(corners: bool) -> None:
    motion = draw_motion(corners=corners)
    for strength in (0.5, 1.5, 2.0):
        scaled = motion.scaled(strength)
        torch.testing.assert_close(scaled.flow, strength * motion.flow)
        torch.testing.assert_close(scaled.occlusion, (1 - strength * (1 - motion.occlusion)).clamp(0, 1))
    assert motion.scaled(2.0).occlusion.min() == 0
    for wrong in ([1], None, "2", 10**400):
        with pytest.raises(UserError, match="strength must be a finite number, 0 or more; got "):
            Motion.identity(1, 2, (2, 2), corners=False).scaled(wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="strength must be a finite number, 0 or more; got nan"):
        motion.scaled(float("nan"))


def test_an_offset_survives_frames_samples_joining_and_resizing() -> None:
    motion = draw_motion(corners=True).scaled(0.5)
    assert motion.offset is not None
    parts = [motion.frames(0, 1), motion.frames(1, 3)]
    assert torch.equal(Motion.concatenate(parts, dim=2).grid(), motion.grid())
    assert torch.equal(motion.samples(1, 2).grid(), motion.grid()[1:])
    mixed = Motion.concatenate([motion, draw_motion(corners=True)], dim=0)
    assert mixed.offset is not None
    assert torch.equal(mixed.offset[2:], torch.ones_like(mixed.offset[2:]))
    # linear: half of the resized motion, half of standing still
    large = motion.resize((SIZE, SIZE)).grid()
    published = draw_motion(corners=True).resize((SIZE, SIZE)).grid()
    still = Motion.identity(2, 3, (SIZE, SIZE), corners=False).grid()
    torch.testing.assert_close(large, (published + still) / 2, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r"offset .* needs corners=True"):
        Motion(motion.flow, motion.occlusion, False, motion.offset)


# ---------------------------------------------------------------------------------------------------------------- masks


@BOTH
def test_outside_a_mask_nothing_moves_and_deep_inside_everything_does(corners: bool) -> None:
    image, motion = draw_image(), draw_motion(corners=corners)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    masked = motion.masked(mask)
    frames, free = decode(masked, image), decode(motion, image)
    outside = frames[..., SIZE // 2 :]
    assert torch.equal(outside, image[:, :, None, :, SIZE // 2 :].expand_as(outside))
    assert torch.equal(masked.flow[..., :8], motion.flow[..., :8])
    assert torch.equal(masked.occlusion[..., :8], motion.occlusion[..., :8])
    torch.testing.assert_close(frames[..., :8], free[..., :8], atol=0.05, rtol=0)  # layers look some pixels far
    assert (frames - free).abs().max() > 0.1


@BOTH
def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_is_still(corners: bool) -> None:
    image, motion = draw_image(), draw_motion(corners=corners)
    assert motion.masked(torch.ones(1, 1, SIZE, SIZE)) is motion
    frames = decode(motion.masked(torch.zeros(1, 1, SIZE, SIZE)), image)
    assert torch.equal(frames, image[:, :, None].expand_as(frames))


def test_the_seam_does_not_tear() -> None:
    """A shift by nearly the seam's width: flow changes by less than a pixel per pixel, so that no pixels cross."""
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 10:54, 6:58] = 1
    soft = feather(mask, (CELLS, CELLS))[0, 0]
    step = 1 / (2 * round(CELLS * FEATHER) + 1)
    steps = torch.cat((soft.diff(dim=0).flatten(), soft.diff(dim=1).flatten())).abs()
    assert soft.max() == 1
    assert steps.max() <= step + 1e-6
    pixels = 0.95 * SIZE / CELLS / step
    motion = Motion(torch.full((1, 2, 1, CELLS, CELLS), 2 * pixels / SIZE), torch.ones(1, 1, 1, CELLS, CELLS))
    gradient = motion.masked(mask).resize((SIZE, SIZE)).flow.diff(dim=-1).abs().max() * SIZE / 2
    assert 0.5 < gradient < 1
    ramp = torch.linspace(0, 1, SIZE).expand(1, 1, SIZE, SIZE)
    moved = warp(ramp, motion.masked(mask).resize((SIZE, SIZE)).grid(), padding_mode="border")
    assert moved.diff(dim=-1).min() >= 0


def test_a_seam_is_nowhere_above_the_mask_and_thin_masks_get_thin_seams() -> None:
    soft = torch.rand(1, 1, SIZE, SIZE)
    resized = torch.nn.functional.interpolate(feather(soft, (CELLS, CELLS)), (SIZE, SIZE), mode="bilinear")
    assert (resized <= soft + 1e-6).all()
    torch.testing.assert_close(feather(torch.full((1, 1, SIZE, SIZE), 0.4), (16, 16)), torch.full((1, 1, 16, 16), 0.4))
    stripe = torch.zeros(1, 1, SIZE, SIZE)
    stripe[..., 30:38] = 1
    assert feather(stripe, (CELLS, CELLS)).max() >= 0.5
    assert feather(stripe, (SIZE, SIZE)).max() >= 0.5  # as fine as the image


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(SIZE, SIZE), r"mask must be \(1, 1, H, W\)"),
        (torch.zeros(1, 1, 40, 40), "multiples of"),
        (torch.full((1, 1, SIZE, SIZE), torch.nan), "must lie in"),
        (torch.full((1, 1, SIZE, SIZE), 1.5), "must lie in"),
    ],
)
def test_invalid_masks_are_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_motion(corners=False).masked(mask)


# ---------------------------------------------------------------------------------------------------------------- files


@BOTH
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_save_and_load_bit_for_bit(tmp_path: Path, corners: bool, strength: float) -> None:
    motion = draw_motion(corners=corners).scaled(strength).to(torch.float16)
    motion.save(tmp_path / "new" / "m.safetensors")
    loaded = Motion.load(tmp_path / "new" / "m.safetensors")
    assert (loaded.corners, loaded.flow.dtype) == (corners, torch.float16)
    assert torch.equal(loaded.flow, motion.flow)
    assert torch.equal(loaded.occlusion, motion.occlusion)
    assert torch.equal(loaded.grid(), motion.grid())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_a_motion_is_saved_in_the_dtype_of_its_flow(tmp_path: Path) -> None:
    motion = draw_motion(corners=False)
    Motion(motion.flow, motion.occlusion.half()).save(tmp_path / "m.safetensors")
    assert torch.equal(Motion.load(tmp_path / "m.safetensors").occlusion, motion.occlusion.half().float())


def test_invalid_motions_are_not_saved(tmp_path: Path) -> None:
    motion = draw_motion(corners=False)
    with pytest.raises(UserError, match=r"must end in \.safetensors; got"):
        motion.save(tmp_path / "photo.png")
    with pytest.raises(UserError, match="flow must be finite"):
        Motion(motion.flow / 0, motion.occlusion).save(tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"occlusion must lie in \[0, 1\]; got"):
        Motion(motion.flow, motion.occlusion + 1).save(tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="flow must not be empty"):
        Motion(motion.flow[:, :, :0], motion.occlusion[:, :, :0]).save(tmp_path / "m.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        motion.save(tmp_path / "file" / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


GOOD = {"format": "lfdm-motion-1", "corners": "false", "shape": "1 2 4 4"}
FLOW, VISIBLE = torch.zeros(1, 2, 2, 4, 4), torch.ones(1, 1, 2, 4, 4)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"flow": FLOW}, GOOD, "tensors must be flow, occlusion"),
        ({"flow": FLOW, "occlusion": VISIBLE, "x": FLOW}, GOOD, "tensors must be flow, occlusion"),
        ({"flow": FLOW, "occlusion": VISIBLE, "offset": VISIBLE}, GOOD, "offset .* needs corners=True"),
        ({"flow": FLOW, "occlusion": VISIBLE[:, :, :1]}, GOOD, "flow must be"),
        ({"flow": FLOW.int(), "occlusion": VISIBLE}, GOOD, "floating point"),
        ({"flow": FLOW, "occlusion": VISIBLE.half()}, GOOD, "occlusion must have the floating point type of flow"),
        ({"flow": FLOW / 0, "occlusion": VISIBLE}, GOOD, "flow must be finite"),
        ({"flow": FLOW, "occlusion": 2 * VISIBLE}, GOOD, r"occlusion must lie in \[0, 1\]"),
        ({"flow": FLOW, "occlusion": VISIBLE}, {**GOOD, "shape": "1 2 4 5"}, "shape b t h w must be '1 2 4 5'"),
        ({"flow": FLOW, "occlusion": VISIBLE}, {**GOOD, "corners": "yes"}, "must be true or false"),
        ({"flow": FLOW, "occlusion": VISIBLE}, {}, "format must be"),
        ({"flow": FLOW[:0], "occlusion": VISIBLE[:0]}, {**GOOD, "shape": "0 2 4 4"}, "flow must not be empty"),
    ],
)
def test_invalid_motion_files_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], message: str
) -> None:
    path = tmp_path / "m.safetensors"
    save_file({name: value.clone() for name, value in tensors.items()}, path, metadata)
    with pytest.raises(UserError, match=message) as caught:
        Motion.load(path)
    assert str(caught.value).startswith(f"{path} holds no valid motion: ")


def test_damaged_and_missing_motion_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    draw_motion(corners=False).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="holds no valid motion"):
        Motion.load(path)
    with pytest.raises(FileNotFoundError, match="no motion file"):
        Motion.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("cells", [8, 32])
@torch.no_grad()
def test_a_mask_is_exact_with_convex_upsampling(cells: int) -> None:
    dense = {"type": "dense", "channels": (8, 8, 8, 8), "match_channels": 4}
    sizes: dict[str, Any] = {"channels": 4, "max_channels": 8, "num_downs": 3, "num_res_blocks": 1, "padding_mode": "border"}
    autoencoder = LatentFlowAutoencoder(**sizes, predictor=dense, corners=False, upsampling="convex").eval()
    for parameter in autoencoder.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    image, mask = draw_image(1), torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 16:] = 1.0
    motion = draw_motion(corners=False, batch=1, size=cells)
    masked = motion.masked(mask, reach=autoencoder.upsampling_reach)
    frames = autoencoder.decode(autoencoder.encode(image), masked).prediction
    still = image.unsqueeze(2).expand_as(frames)
    assert torch.equal(frames[..., :16], still[..., :16])
    assert not torch.equal(frames, still)
