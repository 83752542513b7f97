"""`lfdm info`."""

from lfdm.cli.options import open_pipeline, print_json
from lfdm.config.presets import PRESETS


def info(*, model: str | None = None, json: bool = False) -> None:
    """Show what this installation can do, or describe a model.

    Args:
        model: Bundled name, pipeline folder, diffusion run folder or Hub repository.
        json: Print one JSON object.
    """
    rows = _describe_installation() if model is None else _describe_model(model)
    if json:
        print_json(rows)
        return
    for name, value in rows.items():
        print(f"{name:<16}{value}")


def _describe_installation() -> dict[str, str]:
    import diffusers
    import torch

    import lfdm
    from lfdm.folders.sources import bundled_models

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lfdm": lfdm.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "devices": ", ".join(["cpu", *devices]),
        "bundled models": ", ".join(bundled_models()) or "none",
        "presets": ", ".join(PRESETS),
    }


def _describe_model(model: str) -> dict[str, str]:
    import torch

    from lfdm.diffusion.schedulers import scheduler_name

    pipe = open_pipeline(model, "cpu")
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    sizes = {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}
    config, sampler = pipe.config, scheduler_name(pipe.scheduler)
    shape = pipe.motion_codec.sample_shape(config["num_frames"], *pipe.size.cells(pipe.autoencoder.stride))
    return {
        "model": model,
        "labels": ", ".join(pipe.condition.labels) or "none (--unconditional, or embedding tensors)",
        "text encoder": pipe.condition.text_encoder or "none (only labels)",
        "video": f"{config['num_frames']} frames of {pipe.size}, {config['fps']:g} per second",
        "diffused": f"{type(pipe.motion_codec).__name__}, samples of {'x'.join(map(str, shape))}",
        "sampling": f"{sampler}, " + "{num_inference_steps} steps, guidance {guidance_scale:g}".format(**config),
        "parameters": ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items() if size),
    }
