"""Settings: frozen dataclasses that check themselves, and the presets made of them. Imports neither torch nor numpy."""

__all__ = [
    "checks",
    "control",
    "diffusion",
    "models",
    "predictors",
    "presets",
    "registration",
    "serialization",
    "sizes",
    "training",
    "unsupported",
    "video",
]
