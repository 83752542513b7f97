"""Conversion of published checkpoints to the state of our models, key by key."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfdm.autoencoder.layers import AntiAliasDownsample
from lfdm.diffusion.process import cosine_betas
from lfdm.errors import UserError
from lfdm.folders.file_kinds import check_downloaded
from lfdm.folders.files import expand_home

# The motion U-Net: flowdiff.pth, entry "diffusion" --------------------------------------------------------------------

_NETWORK = "denoise_fn."
_NULL_EMBEDDING = "null_cond_emb"
_FIRST_CONVOLUTION = "init_conv."
_ROTARY_FREQUENCIES = "rotary_emb.freqs"
_MOTION_CHANNELS = 3
_HEADS = 8

_RENAMINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^time_mlp\.1\.", "time_embedding.0."),
        (r"^time_mlp\.3\.", "time_embedding.2."),
        (r"^time_rel_pos_bias\.relative_attention_bias\.", "relative_position_bias."),
        (r"^init_temporal_attn\.", "temporal_attention_in."),
        (r"^(down|up)s\.(\d)\.([01])\.", r"\1.\2.resnets.\3."),
        (r"^(down|up)s\.(\d)\.2\.", r"\1.\2.spatial_attention."),
        (r"^(down|up)s\.(\d)\.3\.", r"\1.\2.temporal_attention."),
        (r"^ups\.(\d)\.4\.1\.", r"up.\1.resample.conv."),
        (r"^(down|up)s\.(\d)\.4\.", r"\1.\2.resample."),
        (r"^mid_block([12])\.", r"middle.resnet\1."),
        (r"^mid_(spatial|temporal)_attn\.", r"middle.\1_attention."),
        (r"^final_conv\.0\.", "heads.0.resnet."),
        (r"^final_conv\.1\.", "heads.0.out."),
        (r"^occlusion_map\.0\.", "heads.1.resnet."),
        (r"^occlusion_map\.1\.", "heads.1.out."),
        (r"\.mlp\.1\.", ".modulation."),
        (r"\.block([12])\.proj\.", r".conv\1."),
        (r"\.block([12])\.norm\.", r".norm\1."),
        (r"\.res_conv\.", ".skip."),
        (r"\.(?:fn\.)+", "."),
        (r"\.norm\.gamma$", ".norm.weight"),
    )
)
"""Substitutions, applied in this order."""

_LINEAR = re.compile(r"(\.skip|\.out|\.to_qkv|\.to_out)\.weight$")
_TEMPORAL_QKV = re.compile(r"temporal_attention(_in)?\.to_qkv\.weight$")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReleasedUNet:
    """A published diffusion checkpoint under our names."""

    weights: dict[str, Tensor]
    """Complete state of `MotionUNet3D`."""
    null_embedding: Tensor | None
    """Learned null condition (1, 768); None = zeros."""


def schedule_tables() -> dict[str, Tensor]:
    """Return the tables that a published diffusion checkpoint stores, all of the cosine schedule: (1000,) float64 each."""
    betas = cosine_betas()
    bar = (1 - betas).cumprod(0)
    previous = torch.cat((torch.ones(1, dtype=bar.dtype), bar[:-1]))
    variance = betas * (1 - previous) / (1 - bar)
    return {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": bar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - bar),
    }


def convert_unet(state: dict[str, Tensor]) -> ReleasedUNet:
    """Rename and reshape the published diffusion network for `MotionUNet3D`.

    Per-frame 5-D convolutions lose their time axis, 1x1 convolutions become linear layers, and the first convolution is split
    into its motion and latent parts. The rows of temporal q and k are reordered, because our rotary embedding rotates channel i
    with i + d/2, the published one 2i with 2i + 1. Schedule tables and rotary frequencies are constants, which are checked and
    dropped. A tensor of an unexpected shape may be passed on unchanged; `load_exactly` refuses it.

    Args:
        state: the checkpoint's "diffusion" entry.

    Raises:
        UserError: an unknown tensor, a missing constant, or another schedule or other rotary frequencies than published.
    """
    tables = schedule_tables()
    unexpected = [name for name in state if not name.startswith(_NETWORK) and name not in tables]
    if unexpected:
        raise UserError(f"unexpected tensors {unexpected}; allowed: {_NETWORK}* and {sorted(tables)}")
    weights: dict[str, Tensor] = {}
    frequencies: dict[str, int] = {}
    for published, value in state.items():
        if published in tables:
            _check_table(published, value, tables[published])
            continue
        name = published.removeprefix(_NETWORK)
        if name.endswith(_ROTARY_FREQUENCIES):
            _check_rotary(published, value)
        elif name != _NULL_EMBEDDING:
            converted = _convert_unet_tensor(name, value)
            weights |= converted
            if value.ndim and any(map(_TEMPORAL_QKV.search, converted)):
                frequencies[published.replace("to_qkv.weight", _ROTARY_FREQUENCIES)] = len(value) // (3 * _HEADS * 2)
    missing = sorted((tables.keys() | frequencies.keys()) - state.keys())
    if missing:
        raise UserError(f"missing tensors {missing}")
    misshapen = [f"{name} {tuple(state[name].shape)}, needs ({n},)" for name, n in frequencies.items() if len(state[name]) != n]
    if misshapen:
        raise UserError(f"misshapen tensors {misshapen}")
    return ReleasedUNet(weights=weights, null_embedding=state.get(_NETWORK + _NULL_EMBEDDING))


def _convert_unet_tensor(name: str, value: Tensor) -> dict[str, Tensor]:
    ours = _rename_unet_tensor(name)
    try:
        return _split_first_convolution(name, value) if name.startswith(_FIRST_CONVOLUTION) else {ours: _reshape(ours, value)}
    except (IndexError, RuntimeError):  # of another shape: `load_exactly` refuses it
        return {ours: value}


def _rename_unet_tensor(name: str) -> str:
    for pattern, replacement in _RENAMINGS:
        name = pattern.sub(replacement, name)
    return name


def _reshape(name: str, value: Tensor) -> Tensor:
    if value.ndim == 5 and name.endswith("norm.weight"):
        return value.flatten()  # (1, c, 1, 1, 1)
    if _LINEAR.search(name):
        value = value.flatten(1)
    elif value.ndim == 5:
        value = value.squeeze(2)
    return _pair_halves(value) if _TEMPORAL_QKV.search(name) else value


def _pair_halves(weight: Tensor) -> Tensor:
    """Reorder the rows of q and k within each head from (0, 1, 2, 3, ...) to (0, 2, ..., 1, 3, ...)."""
    thirds = weight.unflatten(0, (3, _HEADS, -1))  # (3, n, d, c)
    q_and_k = torch.cat((thirds[:2, :, 0::2], thirds[:2, :, 1::2]), dim=2)
    return torch.cat((q_and_k, thirds[2:])).reshape(weight.shape)


def _split_first_convolution(name: str, value: Tensor) -> dict[str, Tensor]:
    if name.endswith("bias"):
        return {"latent_in.bias": value}
    value = value.squeeze(2)
    return {
        "motion_in.weight": value[:, :_MOTION_CHANNELS].contiguous(),
        "latent_in.weight": value[:, _MOTION_CHANNELS:].contiguous(),
    }


def _check_table(name: str, value: Tensor, expected: Tensor) -> None:
    if value.shape != expected.shape:
        raise UserError(f"misshapen tensors [{name} {tuple(value.shape)}, needs {tuple(expected.shape)}]")
    if not torch.allclose(value.double(), expected, rtol=1e-3, atol=1e-6):
        raise UserError(f"{name} must be that of the cosine schedule over 1000 steps (s = 0.008, betas clipped at 0.9999)")


def _check_rotary(name: str, value: Tensor) -> None:
    expected = 10_000.0 ** (-torch.arange(value.numel(), dtype=torch.float64) / value.numel())
    if value.ndim != 1 or not torch.allclose(value.double(), expected, rtol=1e-4, atol=0.0):
        raise UserError(f"{name} must be the rotary frequencies 10000^(-2i/{2 * value.numel()}); got {value.tolist()}")


# The auto-encoder: RegionMM.pth, entries "generator", "region_predictor", "bg_predictor" -----------------------------

_FLOW = "motion_predictor.flow_predictor."
_REGIONS = "motion_predictor.region_predictor."
_BACKGROUND = "motion_predictor.background_predictor."
_PIXELWISE = r"pixelwise_flow_predictor\."
_LAYER = r"(?=(?:conv|norm)\d?\.)"

_AUTOENCODER_RENAMINGS = {
    "generator": (
        (_PIXELWISE + r"hourglass\.encoder\.down_blocks\.(\d)\." + _LAYER, _FLOW + r"hourglass.encoder.blocks.\1."),
        (_PIXELWISE + r"hourglass\.decoder\.up_blocks\.(\d)\." + _LAYER, _FLOW + r"hourglass.ups.\1."),
        (_PIXELWISE + r"(mask|occlusion)\.(?=weight|bias)", _FLOW + r"\1."),
        (r"first\." + _LAYER, "first."),
        (r"down_blocks\.(\d)\." + _LAYER, r"downs.\1."),
        (r"bottleneck\.r(\d)\." + _LAYER, r"bottleneck.\1."),
        (r"up_blocks\.(\d)\." + _LAYER, r"ups.\1."),
        (r"final\.(?=weight|bias)", "final."),
    ),
    "region_predictor": (
        (r"predictor\.encoder\.down_blocks\.(\d)\." + _LAYER, _REGIONS + r"hourglass.encoder.blocks.\1."),
        (r"predictor\.decoder\.up_blocks\.(\d)\." + _LAYER, _REGIONS + r"hourglass.ups.\1."),
        (r"regions\.(?=weight|bias)", _REGIONS + "head."),
    ),
    "bg_predictor": (
        (r"encoder\.down_blocks\.(\d)\." + _LAYER, _BACKGROUND + r"encoder.blocks.\1."),
        (r"fc\.(?=weight|bias)", _BACKGROUND + "head."),
    ),
}
"""Replacements of the beginning of the published names, for each network; exactly one pattern matches each name."""

_ANTI_ALIAS = {"generator": "pixelwise_flow_predictor.down.weight", "region_predictor": "down.weight"}
"""Fixed Gaussian kernels, which our networks compute."""


def convert_autoencoder(
    generator: dict[str, Tensor], region_predictor: dict[str, Tensor], bg_predictor: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Rename the three published stage-1 networks for `LatentFlowAutoencoder`.

    The anti-alias kernels are constants, which are checked and dropped.

    Raises:
        UserError: an unknown tensor, or a missing or different anti-alias kernel.
    """
    networks = {"generator": generator, "region_predictor": region_predictor, "bg_predictor": bg_predictor}
    weights: dict[str, Tensor] = {}
    unexpected = []
    missing = [f"{network}.{name}" for network, name in _ANTI_ALIAS.items() if name not in networks[network]]
    for network, state in networks.items():
        for published, value in state.items():
            if published == _ANTI_ALIAS.get(network):
                _check_anti_alias(f"{network}.{published}", value)
                continue
            ours = _rename_autoencoder_tensor(network, published)
            if ours is None:
                unexpected.append(f"{network}.{published}")
            else:
                weights[ours] = value
    if unexpected or missing:
        raise UserError(f"not the layout of a published auto-encoder: unexpected tensors {unexpected}, missing {missing}")
    return weights


def _rename_autoencoder_tensor(network: str, published: str) -> str | None:
    for pattern, replacement in _AUTOENCODER_RENAMINGS[network]:
        if match := re.match(pattern, published):
            return match.expand(replacement) + published[match.end() :]
    return None


def _check_anti_alias(name: str, value: Tensor) -> None:
    expected = AntiAliasDownsample(3, 4).kernel
    if value.shape != expected.shape or not torch.allclose(value.float(), expected, rtol=1e-4, atol=1e-6):
        raise UserError(f"{name} must be the Gaussian of sigma 1.5 on 13x13 pixels; got another one, {tuple(value.shape)}")


# Files ----------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a published checkpoint (.pth) on the CPU, without executing any code from it.

    Raises:
        FileNotFoundError: no such file.
        UserError: a damaged file, one that does not hold a dictionary, or one that needs code to be executed.
    """
    path = expand_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    check_downloaded(path)
    _check_stored(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would run {code[1]}" if code else "it is damaged or holds more than tensors and plain values"
        raise UserError(f"{path} is refused, because no code from checkpoints is executed: {reason}") from None
    except Exception as error:  # damaged bytes are arbitrary opcodes, which may fail in any way
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__}: {error})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} must hold a dictionary; got {type(state).__name__}")
    return state


def _check_stored(path: Path) -> None:
    """Raise UserError for a zip file whose records are compressed or overlap: torch stores them as they are, once each."""
    if not zipfile.is_zipfile(path):
        return  # torch's older format, which states no more than it holds
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(record.file_size for record in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({error})") from None
    if size > path.stat().st_size:
        raise UserError(f"{path} is refused: it would unpack to {size:,} bytes, more than it has; checkpoints are not compressed")


def read_tensor_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint that is one dictionary of named tensors; raises as `read_checkpoint`, and UserError for another one."""
    state = read_checkpoint(path)
    _check_tensors(str(path), state)
    return state


def _check_tensors(name: str, entries: object) -> None:
    """Raise UserError for anything but a dictionary of named tensors that hold all of their values.

    Tensors can be sparse, without data, or one value expanded to any number.
    """
    if not isinstance(entries, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries.items()):
        raise UserError(f"{name} must be a dictionary of named tensors")
    for key, value in entries.items():
        dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{name}: {key} must be a dense tensor that holds its values; got {tuple(value.shape)}")


IGNORED = re.compile(r"(optimizer|scheduler|epoch|example|avd_network)(_\w*)?")
"""Entries that are not needed: the state of the training, and MRAA's animation network, which LFDM replaces by diffusion."""

AUTOENCODER_NETWORKS = ("generator", "region_predictor", "bg_predictor")
DIFFUSION_NETWORKS = ("diffusion",)


def read_networks(path: str | Path, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Read the networks `names` of a published checkpoint, each a dict of tensors; entries that match `IGNORED` are dropped.

    Raises:
        FileNotFoundError: no such file.
        UserError: as `read_checkpoint`; entries that are missing, unexpected or not dicts of tensors.
    """
    state = read_checkpoint(path)
    missing = [name for name in names if name not in state]
    unexpected = [name for name in state if name not in names and not IGNORED.fullmatch(str(name))]
    if missing or unexpected:
        raise UserError(f"{path} must hold {', '.join(names)}: missing {missing}, unexpected {unexpected}")
    for name in names:
        _check_tensors(f"{path}: entry {name!r}", state[name])
    return {name: dict(state[name]) for name in names}
