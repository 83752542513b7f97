"""Arithmetic for trainings on many GPUs: parameters, bytes and operations of stage 2, of networks that are built without memory.

    python -m benchmarks.cluster_arithmetic                  # renders docs/scaling.md

Nothing is measured: networks are made on PyTorch's meta device, which counts shapes.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.experiment.tables import ROOT, table
from lfdm.config.presets import PRESETS
from lfdm.config.serialization import to_json
from lfdm.config.video import Size
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.folders.files import write_bytes
from lfdm.motion.codecs import make_codec
from lfdm.training.sharding import outer_blocks

START, END = "<!-- arithmetic: rendered by python -m benchmarks.cluster_arithmetic -->", "<!-- end of arithmetic -->"
STATE_BYTES = 20
"""Float32 weight, gradient, two moments of Adam and averaged weight."""
BUCKET_BYTES = 4
"""DDP's copy of the gradients."""
ROWS = {
    "`flow256`": ("flow256", None),
    "`mug128`": ("mug128", None),
    "`mug128`, `--unet.dim 384`": ("mug128", 384),
    "`mug128`, `--unet.dim 1024`": ("mug128", 1024),
}


@dataclass(frozen=True)
class Network:
    """A motion network in numbers."""

    parameters: int
    largest_block: int
    """Parameters of the largest block, and"""
    outside_blocks: int
    """of what FSDP gathers for a whole step."""
    gflop: float
    """Of its prediction for one clip; a multiply-add is two."""

    def fsdp_bytes(self, world: int) -> float:
        """Return the most bytes of a process: its share; outside of blocks, whole weights and gradients; two gathered blocks, the
        gradient of one, and its copy while it is added up.
        """
        return STATE_BYTES * self.parameters / world + 4 * (2 * self.outside_blocks + 4 * self.largest_block)


def count(name: str, dim: int | None) -> Network:
    """Return the numbers of the motion network of a preset."""
    preset = PRESETS[name]
    if dim is not None:
        preset = replace(preset, unet=replace(preset.unet, dim=dim))
    grid = [side // 2**preset.autoencoder.num_downs for side in Size.parse(preset.image_size)]
    shape = make_codec(preset.diffusion, corners=preset.autoencoder.corners).sample_shape(preset.num_frames, *grid)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = MotionUNet3D(**to_json(preset.unet))
        latent, condition = torch.empty(1, preset.unet.latent_channels, *grid), torch.empty(1, preset.unet.condition_dim)
        unet(torch.empty(1, *shape), torch.zeros(1), condition, latent=latent)
    blocks = [_size(block) for block in outer_blocks(unet)]
    return Network(_size(unet), max(blocks), _size(unet) - sum(blocks), counter.get_total_flops() / 1e9)


def _size(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())


def render() -> str:
    """Return the table of docs/scaling.md."""
    header = [
        "stage 2 of",
        "parameters",
        "weights and optimizer",
        "with DDP",
        "with FSDP, 8 / 32 GPUs",
        "DDP sends a step, 8 / 32 GPUs",
        "training step, one clip",
    ]
    rows = []
    for name, (preset, dim) in ROWS.items():
        network = count(preset, dim)
        parameters = network.parameters
        fsdp = [network.fsdp_bytes(world) / 1e9 for world in (8, 32)]
        state, whole = (parameters * size / 1e9 for size in (STATE_BYTES, STATE_BYTES + BUCKET_BYTES))
        sent = [2 * (world - 1) / world * 4 * parameters / 1e9 for world in (8, 32)]
        row = [f"{parameters / 1e6:,.1f} M", f"{state:.2f} GB", f"{whole:.2f} GB", f"{fsdp[0]:.2f} / {fsdp[1]:.2f} GB"]
        rows.append([name, *row, f"{sent[0]:.3f} / {sent[1]:.3f} GB", f"{3 * network.gflop:,.0f} GFLOP"])
    return table(header, rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scaling.md")
    page = parser.parse_args().page
    text = page.read_text()
    write_bytes(page, f"{text.partition(START)[0]}{START}\n{render()}{END}{text.partition(END)[2]}".encode())


if __name__ == "__main__":
    main()
