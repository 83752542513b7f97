"""Conditions of a call: guidance, and labels over time.

Shapes: embeddings (b, D) · weights of labels over time (n, t).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lfdm.condition.encoder import ConditionInput
from lfdm.config.control import Control, LabelSpan
from lfdm.data.free_motion import FREE_LABEL
from lfdm.diffusion.guidance import Guidance
from lfdm.errors import UserError
from lfdm.pipeline.inputs import match_conditions

SEAM = 1 / 8
"""Part of a video over which one label blends into the next."""


def make_guidance(
    embed: Callable[[ConditionInput], Tensor],
    scale: float,
    condition: ConditionInput,
    negative: ConditionInput,
    num_images: int,
    num_videos: int,
) -> tuple[Guidance, Tensor]:
    """Return the guidance and the condition's embeddings (b, D), one per video."""
    if negative is not None and scale <= 1:
        raise UserError(f"guidance_scale must be above 1; got {scale:g}, which gives negative_condition no effect")
    if condition is None and negative is None:
        scale = 1.0
    embeddings = (embed(one) for one in (condition, negative))
    embedding, negative_embedding = match_conditions(num_images, *embeddings, num_videos=num_videos)
    return Guidance(negative=negative_embedding, scale=scale, is_null=negative is None), embedding


def controlled_condition(condition: ConditionInput, control: Control | None, labels: Sequence[str]) -> ConditionInput:
    """Return the condition of a call with a control: its first label over time, or free motion for drags without a label.

    Raises:
        UserError: a condition as well as labels over time.
    """
    if control is None:
        return condition
    if control.labels:
        if condition is not None:
            raise UserError(f"condition must be None with labels over time; got {condition!r}")
        return control.labels[0].label
    return FREE_LABEL if condition is None and control.follows_tracks and FREE_LABEL in labels else condition


def over_time(
    guidance: Guidance, embed: Callable[[ConditionInput], Tensor], spans: Sequence[LabelSpan], num_frames: int, last: float
) -> Guidance:
    """Return guidance with labels over time; where there is none, the null condition.

    Args:
        last: time of the last frame.
    """
    weights = span_weights(spans, num_frames, last)
    embeddings = [embed(span.label) for span in spans]
    rest = 1 - weights.sum(0, keepdim=True)
    if rest.max() > 0:
        embeddings, weights = [*embeddings, embed(None)], torch.cat((weights, rest))
    return replace(guidance, spans=torch.cat(embeddings).to(guidance.negative), weights=weights)


def span_weights(spans: Sequence[LabelSpan], num_frames: int, last: float) -> Tensor:
    """Return the weight of each label in each frame, (n, t), at most 1 together; labels blend around their ends.

    Args:
        last: time of the last frame.
    """
    time = torch.arange(num_frames) / (num_frames - 1)
    weights = torch.zeros(len(spans), num_frames)
    for i, span in enumerate(spans):
        begins = torch.ones(num_frames) if span.start <= 0 else (time - span.start / last) / SEAM + 0.5
        ends = torch.ones(num_frames) if span.end >= last else (span.end / last - time) / SEAM + 0.5
        weights[i] = torch.minimum(begins, ends).clamp(0, 1)
    return weights / weights.sum(0).clamp(min=1)
