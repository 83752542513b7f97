"""Settings of the diffusion process and of sampling."""

from dataclasses import dataclass
from typing import Literal

from lfdm.config.checks import check, check_integer, check_number, check_types
from lfdm.config.models import FLOW_CHANNELS

PredictionType = Literal["epsilon", "v_prediction", "velocity"]
SamplerName = Literal["dpmpp_2m", "euler", "heun", "ddim", "ddpm", "flow_map"]
"""Functions of `lfdm.diffusion.samplers`."""
PAPER_SAMPLERS: tuple[SamplerName, ...] = ("ddpm", "ddim", "dpmpp_2m")
"""Samplers with the paper's dynamic thresholding."""

LEARNED_COMPONENTS, LEARNED_PATCH = 64, 2
"""Components with codec='learned', and the side in cells of the patches that they describe."""
MAX_GUIDANCE_SCALE = 100.0
NUM_TRAIN_TIMESTEPS = 1000
"""Noise levels in training and largest number of sampling steps."""

TEXT_ENCODER = "bert-base-cased"
"""The paper's text encoder."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Diffusion process, condition and default sampling."""

    codec: Literal["flow", "grid", "learned"] = "flow"
    """Diffused variable: displacement (flow, our own) or position (grid, paper) per frame, or learned per clip (experimental)."""
    normalize: bool = True
    """Scaling of motion channels to zero mean and unit variance, measured on the training set."""
    prediction_type: PredictionType = "velocity"
    """Prediction of the network: noise (paper), v (arXiv 2202.00512), or velocity on the straight path (2210.02747; our own)."""
    sampler: SamplerName = "dpmpp_2m"
    """Default sampler."""
    num_inference_steps: int = 10
    """Default number of sampling steps."""
    guidance_scale: float = 1.0
    """Default scale of classifier-free guidance; 1 = only the conditional prediction."""
    dynamic_thresholding: bool = False
    """Clipping of x0 by its 0.9 quantile at every step (paper); it shrinks normalized motion, so our recipe omits it."""
    clamp_to_range: bool = True
    """Clamping of x0 to the range of each channel in the training set (our own)."""
    still_first_frame: bool = True
    """Frame 0 of a video is the image itself: no flow, no occlusion (our own)."""
    condition: Literal["labels", "text"] = "labels"
    """Fixed embeddings of labels, or embeddings of a text encoder."""
    text_encoder: str = TEXT_ENCODER
    """Hugging Face text encoder for condition='text': name on the Hub or local folder."""
    text_pooling: Literal["mean", "attention"] = "mean"
    """Pooling of tokens: mean (paper), or weighted by a learned query (our own)."""
    learned_null: bool = False
    """Learned vector as the null condition, instead of zeros."""

    def __post_init__(self) -> None:
        check_types(self)
        check_integer("num_inference_steps", self.num_inference_steps, 1, NUM_TRAIN_TIMESTEPS)
        check_number("guidance_scale", self.guidance_scale, low=0, high=MAX_GUIDANCE_SCALE)
        pools = self.condition == "text" or self.text_pooling == "mean"
        check(pools, "text_pooling", self.text_pooling, "'mean' with condition='labels'")
        embeds = self.condition == "text" or self.text_encoder == TEXT_ENCODER
        check(embeds, "text_encoder", self.text_encoder, f"{TEXT_ENCODER!r}, its default, with condition='labels'")
        thresholds = self.dynamic_thresholding
        known = not thresholds or self.sampler in PAPER_SAMPLERS
        check(known, "sampler", self.sampler, f"one of {', '.join(PAPER_SAMPLERS)} with dynamic_thresholding")
        check(not (thresholds and self.prediction_type == "velocity"), "dynamic_thresholding", True, "False with velocity")
        check(not (thresholds and self.clamp_to_range), "clamp_to_range", True, "False with dynamic_thresholding")
        check(self.codec != "grid" or not self.normalize, "normalize", True, "False with codec='grid'")
        for name in ("normalize", "still_first_frame"):
            check(self.codec != "learned" or getattr(self, name), name, False, "True with codec='learned'")
        check(self.normalize or not self.clamp_to_range, "clamp_to_range", True, "False without normalize (no stored range)")

    @property
    def sample_channels(self) -> int:
        """Channels of what is diffused: x, y and occlusion, or learned coefficients."""
        return LEARNED_COMPONENTS // LEARNED_PATCH**2 if self.codec == "learned" else FLOW_CHANNELS + 1
