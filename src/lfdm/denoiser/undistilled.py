"""The ordinary network inside a distilled one, for training that starts from it."""

import torch

from lfdm.denoiser.blocks import sinusoids
from lfdm.denoiser.unet3d import MotionUNet3D


@torch.no_grad()
def without_distilled_inputs(unet: MotionUNet3D) -> MotionUNet3D:
    """Return a copy without the inputs that `lfdm train few-steps` adds: the end of the interval and the guidance scale.

    It predicts, with the same accuracy, what the distilled network predicts at one instant and at scale 1: the conditional
    prediction, which ordinary guidance applies to. The embedding of scale 1 becomes part of the time embedding's bias.
    """
    settings = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    plain = MotionUNet3D(**{**settings, "flow_map": False, "max_guidance": None}).to(unet.device, unet.dtype)
    weights = unet.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    if unet.guidance_embedding is not None:
        last = plain.time_embedding[-1]
        assert isinstance(last, torch.nn.Linear)
        last.bias += unet.guidance_embedding(sinusoids(torch.zeros((), device=unet.device), unet.dim).to(unet.dtype))[0]
    return plain.train(unet.training)
