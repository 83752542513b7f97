"""Tiny checkpoint pairs in the published layout, and what the project computes with them.

`python tests/golden/released/make.py` writes, beside itself, for each of `PRESETS`:
    NAME.json           every tensor of its two files: network -> tensor -> [shape, dtype]
    NAME.safetensors    the outputs of `outputs`
Only a change of numerics that is meant may rewrite the outputs; the layouts never change. Weights depend on the tensors'
names alone, so that the checkpoints themselves need not be kept.
"""

import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.autoencoder.layers import AntiAliasDownsample
from lfdm.config.models import AutoencoderConfig, UNetConfig
from lfdm.config.predictors import RegionConfig
from lfdm.config.presets import MUG128, NATOPS128, Preset
from lfdm.config.serialization import to_json
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.published.importing import import_released
from lfdm.published.weights import schedule_tables

FOLDER = Path(__file__).parent
Layout = dict[str, dict[str, tuple[list[int], str]]]
State = dict[str, dict[str, Tensor]]

_AUTOENCODER = AutoencoderConfig(
    channels=4,
    max_channels=8,
    num_res_blocks=2,
    predictor=RegionConfig(num_regions=2, channels=4, flow_channels=4, max_channels=8, depth=2),
)
_UNET = UNetConfig(latent_channels=8, condition_dim=16, dim=8, channel_multipliers=(1, 2), head_dim=4)
_MUG = replace(MUG128, name="tiny-mug", image_size=64, num_frames=4, autoencoder=_AUTOENCODER, unet=_UNET)
PRESETS: dict[str, Preset] = {
    "mug": _MUG,
    "natops": replace(
        _MUG,
        name="tiny-natops",
        autoencoder=replace(_AUTOENCODER, predictor=replace(_AUTOENCODER.predictor, padding=0)),
        unet=replace(_UNET, upsample="nearest"),
        diffusion=NATOPS128.diffusion,
    ),
}


# The layout: our names -> published ones, written the other way round from `lfdm.published.weights`-----------------------------

_AUTOENCODER_NAMES = (
    (r"encoder\.blocks\.", "encoder.down_blocks."),
    (r"^motion_predictor\.flow_predictor\.hourglass\.ups\.", "generator/pixelwise_flow_predictor.hourglass.decoder.up_blocks."),
    (r"^motion_predictor\.flow_predictor\.", "generator/pixelwise_flow_predictor."),
    (r"^motion_predictor\.region_predictor\.hourglass\.ups\.", "region_predictor/predictor.decoder.up_blocks."),
    (r"^motion_predictor\.region_predictor\.hourglass\.", "region_predictor/predictor."),
    (r"^motion_predictor\.region_predictor\.head\.", "region_predictor/regions."),
    (r"^motion_predictor\.background_predictor\.head\.", "bg_predictor/fc."),
    (r"^motion_predictor\.background_predictor\.", "bg_predictor/"),
    (r"^(down|up)s\.", r"generator/\1_blocks."),
    (r"^bottleneck\.", "generator/bottleneck.r"),
    (r"^(first|final)\.", r"generator/\1."),
)
_UNET_NAMES = (
    (r"^motion_in\.", "init_conv."),
    (r"^time_embedding\.0\.", "time_mlp.1."),
    (r"^time_embedding\.2\.", "time_mlp.3."),
    (r"^relative_position_bias\.", "time_rel_pos_bias.relative_attention_bias."),
    (r"^heads\.0\.resnet\.", "final_conv.0."),
    (r"^heads\.0\.out\.", "final_conv.1."),
    (r"^heads\.1\.resnet\.", "occlusion_map.0."),
    (r"^heads\.1\.out\.", "occlusion_map.1."),
    (r"^middle\.resnet", "mid_block"),
    (r"^(down|up)\.(\d)\.resnets\.", r"\1s.\2."),
    (r"^up\.(\d)\.resample\.conv\.", r"ups.\1.4.1."),
    (r"^(down|up)\.(\d)\.resample\.", r"\1s.\2.4."),
    (r"\.modulation\.", ".mlp.1."),
    (r"\.conv([12])\.", r".block\1.proj."),
    (r"\.norm([12])\.", r".block\1.norm."),
    (r"\.skip\.", ".res_conv."),
    (r"attention(_in)?\.norm\.weight$", r"attention\1.norm.gamma"),
    (r"^temporal_attention_in\.(to_\w+)", r"init_temporal_attn.fn.fn.fn.\1"),
    (r"^temporal_attention_in\.norm", "init_temporal_attn.fn.norm"),
    (r"^middle\.(spatial|temporal)_attention\.(to_\w+)", r"mid_\1_attn.fn.fn.fn.\2"),
    (r"^middle\.(spatial|temporal)_attention\.norm", r"mid_\1_attn.fn.norm"),
    (r"^(down|up)\.(\d)\.spatial_attention\.(to_\w+)", r"\1s.\2.2.fn.fn.\3"),
    (r"^(down|up)\.(\d)\.spatial_attention\.norm", r"\1s.\2.2.fn.norm"),
    (r"^(down|up)\.(\d)\.temporal_attention\.(to_\w+)", r"\1s.\2.3.fn.fn.fn.\3"),
    (r"^(down|up)\.(\d)\.temporal_attention\.norm", r"\1s.\2.3.fn.norm"),
)


def layout(preset: Preset) -> Layout:
    """Every tensor of the two published files that a preset's configuration would have."""
    with torch.device("meta"):
        stage1 = LatentFlowAutoencoder(**to_json(preset.autoencoder)).state_dict()
        unet = MotionUNet3D(**to_json(preset.unet)).state_dict()
    found: Layout = {"generator": {}, "region_predictor": {}, "bg_predictor": {}, "diffusion": {}}
    for ours, value in stage1.items():
        network, _, name = _renamed(ours, _AUTOENCODER_NAMES).partition("/")
        found[network][name] = list(value.shape), str(value.dtype).removeprefix("torch.")
    kernel = [3, 1, 13, 13], "float32"
    found["generator"]["pixelwise_flow_predictor.down.weight"] = found["region_predictor"]["down.weight"] = kernel
    found["diffusion"] = {name: ([1000], "float32") for name in schedule_tables()}
    for ours, value in unet.items():
        found["diffusion"] |= _unet_entries(ours, list(value.shape), preset.unet)
    if preset.diffusion.learned_null:
        found["diffusion"]["denoise_fn.null_cond_emb"] = [1, preset.unet.condition_dim], "float32"
    return found


def _unet_entries(ours: str, shape: list[int], unet: UNetConfig) -> dict[str, tuple[list[int], str]]:
    name = "denoise_fn." + _renamed(ours, _UNET_NAMES)
    if ours == "motion_in.weight":
        shape = [shape[0], unet.sample_channels + unet.latent_channels, 1, *shape[2:]]
    elif ours.startswith("latent_in."):
        return {"denoise_fn.init_conv.bias": (shape, "float32")} if ours.endswith("bias") else {}
    elif name.endswith("gamma"):
        shape = [1, *shape, 1, 1, 1]
    elif re.search(r"\.2\.fn\.fn\.to_\w+\.weight$", name):
        shape = [*shape, 1, 1]
    elif re.search(r"(res_conv|final_conv\.1|occlusion_map\.1)\.weight$", name):
        shape = [*shape, 1, 1, 1]
    elif len(shape) == 4:
        shape = [*shape[:2], 1, *shape[2:]]
    entries = {name: (shape, "float32")}
    if "temporal" in ours and name.endswith("to_qkv.weight"):
        entries[name.replace("to_qkv.weight", "rotary_emb.freqs")] = [unet.head_dim // 2], "float32"
    return entries


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


# Checkpoints and inputs: values that depend only on names ---------------------------------------------------------------


def normal(name: str, shape: list[int]) -> Tensor:
    """Standard normal values."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def networks(name: str) -> State:
    """The networks of the tiny checkpoints `name`, in its stored layout."""
    stored: Layout = json.loads((FOLDER / f"{name}.json").read_text())
    return {
        network: {tensor: _value(f"{network}/{tensor}", shape) for tensor, (shape, _) in entries.items()}
        for network, entries in stored.items()
    }


def _value(name: str, shape: list[int]) -> Tensor:
    last = name.rpartition("/")[2]
    if last in (tables := schedule_tables()):
        return tables[last].float()
    if last.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if last.endswith("freqs"):
        return 10_000.0 ** (-torch.arange(shape[0]) / shape[0])
    if last.endswith("down.weight"):
        return AntiAliasDownsample(3, 4).kernel.clone()
    values = normal(name, shape)
    if last.endswith("running_var"):
        return 1 + 0.2 * values.abs()
    if last.endswith("gamma") or re.search(r"norm\d?\.weight$", last):
        return 1 + 0.05 * values
    if last == "fc.bias":
        return torch.tensor([1.0, 0, 0, 0, 1, 0]) + 0.05 * values
    return 0.05 * values if len(shape) == 1 else values / math.sqrt(math.prod(shape[1:]))


def write_checkpoints(state: State, folder: Path) -> tuple[Path, Path]:
    """RegionMM.pth and flowdiff.pth, with the entries that published files have besides the networks."""
    stage1, stage2 = folder / "RegionMM.pth", folder / "flowdiff.pth"
    generators = {name: state[name] for name in ("generator", "region_predictor", "bg_predictor")}
    torch.save({**generators, "optimizer": {}, "example": 4_650_000, "epoch": 100}, stage1)
    torch.save({"diffusion": state["diffusion"], "optimizer_diff": {}, "example": 558_000}, stage2)
    return stage1, stage2


@torch.no_grad()
def outputs(pipe: LatentFlowPipeline) -> dict[str, Tensor]:
    """What an imported tiny pipeline computes, through its public interface."""
    size, dim = pipe.config["image_size"], pipe.condition.dim
    source, driving = (
        F.interpolate(normal(name, [1, 3, 9, 9]), size=(size, size), mode="bicubic", align_corners=True).sigmoid()
        for name in ("source", "driving")
    )
    autoencoder = pipe.autoencoder
    features = autoencoder.encode(source)
    motion = autoencoder.estimate_motion(source, driving)
    decoded = autoencoder.decode(features, motion)
    sample, condition = normal("x", [1, 3, 12, *motion.size]), normal("condition", [1, dim])
    video = pipe(source, condition, num_inference_steps=4, guidance_scale=2.5, generator=0, output_type="pt")
    assert isinstance(video.frames, Tensor)
    return {
        "latent": features.latent,
        "grid": motion.grid(),
        "occlusion": motion.occlusion,
        "prediction": decoded.prediction[..., ::2, ::2],
        "warped": decoded.warped[..., ::2, ::2],
        "null": pipe.embed_condition([None]),
        "unet": pipe.unet(sample, 637, condition, features.latent),
        "unet_null": pipe.unet(sample, 637, pipe.embed_condition(None), features.latent),
        "video_grid": video.motion.grid(),
        "video_frames": video.frames.transpose(1, 2)[..., ::4, ::4],
    }


def import_tiny(name: str, folder: Path) -> Path:
    """The tiny checkpoints `name`, imported into `folder`/model."""
    stage1, stage2 = write_checkpoints(networks(name), folder)
    return import_released(PRESETS[name], folder / "model", autoencoder=stage1, diffusion=stage2).path


def main() -> None:
    torch.set_num_threads(1)
    for name, preset in PRESETS.items():
        (FOLDER / f"{name}.json").write_text(json.dumps(layout(preset)) + "\n")
        with TemporaryDirectory() as folder:
            pipe = LatentFlowPipeline.from_pretrained(import_tiny(name, Path(folder)))
            pipe.set_progress_bar_config(disable=True)
            recorded = {key: value.contiguous() for key, value in outputs(pipe).items()}
        save_file(recorded, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()
