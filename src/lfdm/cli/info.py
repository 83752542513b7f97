"""`lfdm info`."""

from lfdm.cli.console import Values
from lfdm.cli.options import open_pipeline
from lfdm.config.presets import PRESETS


def info(*, model: str | None = None) -> Values:
    """Show what this installation can do, or describe a model.

    Args:
        model: Bundled name, pipeline folder, diffusion run folder or Hub repository.
    """
    rows = _describe_installation() if model is None else _describe_model(model)
    for name, value in rows.items():
        print(f"{name:<18}{value}")
    return rows


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
    from lfdm.pipeline.card import describe
    from lfdm.pipeline.quality import is_of_weights, read_quality

    pipe = open_pipeline(model, "cpu")
    quality = {} if pipe.source is None else read_quality(pipe.source)
    measured = quality if pipe.source is not None and is_of_weights(quality, pipe.source) else {}
    return {"model": model, **describe(pipe, measured)}
