"""Every scheduler with a network that knows x0, through the pipeline's own sampling code."""

import math
import warnings
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from lfdm.config.diffusion import PredictionType
from lfdm.config.registration import register_to_config
from lfdm.denoiser.network import DenoiserContext, DenoiserNetwork
from lfdm.diffusion.guidance import Guidance
from lfdm.diffusion.process import cosine_betas, prediction_from_clean, signal_and_noise_scale
from lfdm.diffusion.samplers import SAMPLERS
from lfdm.diffusion.sampling import MotionSampler
from lfdm.diffusion.schedulers import FAMILIES, MotionScheduler, make_scheduler, predicted_by
from lfdm.errors import UserError
from lfdm.motion.codec import FrameCodec

TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "velocity")
STEPS = (4, 10, 25)
X0 = torch.linspace(-2, 2, 3 * 2 * 4 * 4).view(1, 3, 2, 4, 4)


class OracleNetwork(DenoiserNetwork):
    """Predicts exactly what belongs to the x0 `X0`, for samples on the path that it is trained on."""

    @register_to_config
    def __init__(self, *, prediction_type: PredictionType) -> None:
        super().__init__()
        self.kind: PredictionType = prediction_type
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, sample: Tensor, timestep: Tensor | float, condition: Tensor, latent: Tensor) -> Tensor:
        del condition, latent
        t = float(timestep)
        if self.kind == "velocity":
            alpha, sigma = 1 - t / 1000, t / 1000
        else:
            low = int(min(t, 998))
            pair = signal_and_noise_scale(torch.tensor([low, low + 1]), self.kind)
            before, after = (pair[0] / pair[1]).double().log().tolist()
            log_ratio = before + (t - low) * (after - before)
            sigma = float((1 + math.exp(2 * log_ratio)) ** -0.5)
            alpha = (1 - sigma**2) ** 0.5
        return prediction_from_clean(X0.expand_as(sample), sample, alpha, sigma, self.kind)


def sample(scheduler: Any, kind: PredictionType, num_steps: int) -> Tensor:
    sampler = MotionSampler(OracleNetwork(prediction_type=kind), FrameCodec(still_first_frame=False), scheduler, kind)
    context = DenoiserContext(condition=torch.zeros(1, 1), latent=torch.zeros(1, 1, 4, 4))
    generators = [torch.Generator().manual_seed(0)]
    return sampler.sample(
        context,
        Guidance(negative=torch.zeros(1, 1)),
        num_frames=2,
        num_steps=num_steps,
        generators=generators,
        callback=lambda _, __, x: x,
    )


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"flow_map"}))
def test_our_samplers_find_x0(name: Any, kind: PredictionType, num_steps: int) -> None:
    found = sample(make_scheduler(name, prediction_type=kind), kind, num_steps)
    torch.testing.assert_close(found, X0, rtol=0, atol=1e-3)


def schedulers_of_diffusers() -> list[str]:
    names = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")]
    return [name for name in names if issubclass(getattr(diffusers.schedulers, name), SchedulerMixin)]


def made_for(name: str, kind: PredictionType, **settings: Any) -> Any:
    cls = getattr(diffusers.schedulers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls.from_config(MotionScheduler(prediction_type=kind).config, **settings)


@pytest.mark.parametrize("name", sorted(set(schedulers_of_diffusers()) - set(FAMILIES)))
def test_other_schedulers_of_diffusers_are_refused(name: str) -> None:
    scheduler = object.__new__(getattr(diffusers.schedulers, name))  # some cannot be made without arguments
    with pytest.raises(UserError, match=f"scheduler {name} is not supported"):
        sample(scheduler, "epsilon", 4)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_supported_schedulers_of_diffusers_find_x0(name: str, kind: PredictionType, num_steps: int) -> None:
    scheduler = made_for(name, kind)
    if name.startswith("FlowMatch") and kind != "velocity":  # they know no other type, also when saved and loaded
        with pytest.raises(UserError, match=f"unet predicts {kind}, {name} is for velocity"):
            sample(scheduler, kind, num_steps)
        return
    assert float((sample(scheduler, kind, num_steps) - X0).abs().max()) < 0.05


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("FlowMatch")])
def test_schedulers_on_the_cosine_schedule_find_x0_or_are_refused(name: str, num_steps: int) -> None:
    """Its first step, from a sigma of 64,000, is what solvers made for less fail at."""
    scheduler = made_for(name, "v_prediction", trained_betas=cosine_betas().tolist())
    try:
        found = sample(scheduler, "v_prediction", num_steps)
    except UserError:
        assert name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler")
        return
    assert float((found - X0).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(), "scheduler EDMEulerScheduler is not supported"),
        (
            DDPMScheduler(prediction_type="v_prediction", variance_type="learned"),
            "variance_type of DDPMScheduler must be .*learned",
        ),
        (
            HeunDiscreteScheduler(prediction_type="v_prediction", trained_betas=cosine_betas().tolist()),
            "at most 200, .*; got 64161",
        ),
    ],
)
def test_schedulers_that_would_give_wrong_samples_are_refused(scheduler: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(scheduler, "v_prediction", 10)


def test_a_run_leaves_the_scheduler_as_it_is_set() -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=True)
    before = dict(scheduler.config)
    torch.testing.assert_close(sample(scheduler, "v_prediction", 4), X0, rtol=0, atol=0.05)
    assert (dict(scheduler.config), scheduler.num_inference_steps) == (before, None)


def test_ddpm_of_diffusers_ends_without_noise() -> None:
    """Also where few steps end above timestep 0."""
    scheduler = DDPMScheduler(
        prediction_type="v_prediction",
        trained_betas=cosine_betas().tolist(),
        variance_type="fixed_large",
        timestep_spacing="trailing",
    )
    torch.testing.assert_close(sample(scheduler, "v_prediction", 4), X0, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        (MotionScheduler(prediction_type="velocity"), "velocity"),
        (FlowMatchEulerDiscreteScheduler(), "velocity"),
        (FlowMatchEulerDiscreteScheduler.from_config(MotionScheduler(prediction_type="epsilon").config), "velocity"),
        (DDIMScheduler.from_config(MotionScheduler(prediction_type="velocity").config), "velocity"),
        (DDIMScheduler(prediction_type="v_prediction"), "v_prediction"),
        (make_scheduler("ddpm", prediction_type="epsilon", paper=True), "epsilon"),
    ],
)
def test_a_scheduler_says_what_its_network_predicts(scheduler: Any, kind: PredictionType) -> None:
    assert predicted_by(scheduler) == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "eulr", "prediction_type": "epsilon"}, "sampler must be one of euler, .*; got 'eulr'"),
        ({"sampler": "ddpm", "prediction_type": "sample"}, "prediction_type must be one of epsilon, .*; got 'sample'"),
        ({"sampler": "heun", "prediction_type": "epsilon", "paper": True}, "sampler must be one of ddpm, .*; got 'heun'"),
        ({"sampler": "ddpm", "prediction_type": "velocity", "paper": True}, "dynamic_thresholding; got 'velocity'"),
    ],
)
def test_impossible_schedulers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_scheduler(**arguments)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m"])
def test_paper_sampling_thresholds(name: Any) -> None:
    paper = make_scheduler(name, prediction_type="epsilon", paper=True)
    assert (paper.config.thresholding, paper.config.dynamic_thresholding_ratio) == (True, 0.9)
    x0 = 3 * torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    limit = x0.abs().flatten(1).quantile(0.9, dim=1).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(paper._threshold_sample(x0), x0.clamp(-limit, limit) / limit)


def test_our_scheduler_takes_the_settings_of_others_but_no_unknown_change() -> None:
    of_diffusers: Any = DDIMScheduler.from_config(MotionScheduler(prediction_type="v_prediction", sampler="heun").config)
    back = MotionScheduler.from_config(of_diffusers.config)
    assert (back.prediction_type, back.sampler) == ("v_prediction", "heun")
    with pytest.raises(UserError, match=r"no settings \['beta'\]"):
        MotionScheduler.from_config(of_diffusers.config, beta=1)
