"""Presets by the size of their images, and a training that grows from small images to large ones."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lfdm.config.checks import check
from lfdm.config.presets import FLOW64, FLOW128, FLOW256, FLOW512, Preset
from lfdm.config.training import with_num_steps

OWN_PRESETS = (FLOW64, FLOW128, FLOW256, FLOW512)
"""Our own recipe at every size."""


@dataclass(frozen=True, kw_only=True)
class SizeStage:
    """A part of a growing training."""

    size: int
    """Shorter side of frames in pixels."""
    num_steps: int
    """Optimizer steps at this size."""


def parse_stages(values: Sequence[str]) -> tuple[SizeStage, ...]:
    """Read `SIZE:STEPS` for every stage.

    Raises:
        UserError: another form, or sizes that do not rise.

    >>> parse_stages(["64:1500", "128:1000"])
    (SizeStage(size=64, num_steps=1500), SizeStage(size=128, num_steps=1000))
    """
    for value in values:
        check(re.fullmatch(r"[1-9]\d{0,4}:[1-9]\d{0,8}", value) is not None, "sizes", value, "SIZE:STEPS, such as 64:1500")
    stages = tuple(SizeStage(size=int(size), num_steps=int(steps)) for size, steps in (v.split(":") for v in values))
    rising = all(a.size < b.size for a, b in pairwise(stages))
    check(rising, "sizes", " ".join(values), "in rising order of size")
    return stages


def staged_presets(preset: Preset, stages: Sequence[SizeStage]) -> list[Preset]:
    """Return a preset for every stage; each has the same grid of motion, and weights that the next one continues.

    Raises:
        UserError: the last size is not that of `preset`, or another one is not a half, a quarter, ... of it.
    """
    last, side = stages[-1].size, min(preset.size)
    check(last == side, "sizes", last, f"{side} at last, the shorter side of {preset.name}")
    return [_at_size(preset, stage) for stage in stages]


def _at_size(preset: Preset, stage: SizeStage) -> Preset:
    side = min(preset.size)
    halvings = math.log2(side / stage.size)
    model, training = preset.autoencoder, preset.autoencoder_training
    possible = halvings.is_integer() and 0 <= halvings < model.num_downs
    sizes = [side >> i for i in range(model.num_downs)]
    check(possible, "sizes", stage.size, f"one of {', '.join(map(str, sizes[::-1]))} with {preset.name}")
    return replace(
        preset,
        image_size=(preset.size.height >> int(halvings), preset.size.width >> int(halvings)),
        autoencoder=replace(model, num_downs=model.num_downs - int(halvings)),
        autoencoder_training=replace(training, optimization=with_num_steps(training.optimization, stage.num_steps)),
    )


def suitable_preset(short_sides: Sequence[int]) -> tuple[Preset, str]:
    """Return the preset for clips of these short sides in pixels, and the reason: the size nearest to their median, by ratio."""
    median = statistics.median(short_sides)
    preset = min(OWN_PRESETS, key=lambda one: abs(math.log2(min(one.size) / median)))
    return preset, f"the clips' median short side is {median:g} pixels, nearest to {min(preset.size)}"
