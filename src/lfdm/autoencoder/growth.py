"""Weights of a model of smaller images as the start of a model of larger ones.

Models of different sizes differ only in the number of halvings between image and latent: each doubling of the size adds a level
at the coarse end of encoder and decoder, and the motion keeps its grid. All other weights have the same shapes.
"""

import re

import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder

NEW_PARTS = ("upsampler.", "motion_predictor.local_refinement.")
"""Parts that models of small images may lack; they start as a new model's do: no change of the motion."""


def grown_weights(module: LatentFlowAutoencoder, start: LatentFlowAutoencoder) -> dict[str, Tensor]:
    """Return the weights of `module` that continue `start`, a model of the same or of smaller images.

    Encoder and decoder levels are aligned by their stride. New levels start as the identity in evaluation mode: the encoder's
    averages, the decoder's repeats, and the bottleneck goes on working at the latent's size. What differs in other ways than
    in the number of levels is left as it is, for `load_exactly` to report.
    """
    known, own = start.state_dict(), module.state_dict()
    new_levels = module.config["num_downs"] - start.config["num_downs"]
    if new_levels < 0:
        return known
    weights = {_shift_up_block(name, new_levels): value for name, value in known.items()}
    for name, value in own.items():
        level = re.match(r"(downs|ups)\.(\d+)\.(.+)", name)
        if level is not None and name not in weights:
            weights[name] = _identity(level[3], value)
        elif name.startswith(NEW_PARTS) and name not in weights:
            weights[name] = value
    return weights


def _shift_up_block(name: str, count: int) -> str:
    """Rename a decoder level, which are counted from the coarse end."""
    return re.sub(r"^ups\.(\d+)", lambda match: f"ups.{int(match[1]) + count}", name)


def _identity(name: str, value: Tensor) -> Tensor:
    """Return the weight or statistic `name` of a level that passes its input on unchanged."""
    if name == "conv.weight":
        return torch.nn.init.dirac_(torch.empty_like(value))
    ones = name in ("norm.weight", "norm.running_var")
    return torch.ones_like(value) if ones else torch.zeros_like(value)
