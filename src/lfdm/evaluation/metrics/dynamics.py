"""Amount and smoothness of motion, measured in pixels, so that generators without flow can be compared.

Motion energy is the mean absolute change from one frame to the next. Jitter is the share of temporal power above half the highest
frequency (periods below 4 frames): the values of every pixel over time, mean removed and Hann-tapered, with power summed over
pixels and channels. A still clip has no energy and hence no spectrum; noise has a flat one.

Shapes: frames (b, t, H, W, 3) uint8 · spectra (b, t // 2 + 1).
"""

from typing import Any

import numpy as np

JITTER_ABOVE = 0.25
"""Cycles per frame; half of the highest frequency, 0.5."""


def motion_energy(frames: np.ndarray) -> np.ndarray:
    """Return mean |frame k - frame k-1| of every clip, in units of the intensity range, (b,)."""
    return np.abs(np.diff(frames.astype(np.float32) / 255, axis=1)).mean(axis=(1, 2, 3, 4), dtype=np.float64)


def temporal_spectrum(frames: np.ndarray) -> np.ndarray:
    """Return the power at every temporal frequency k / t, k = 0..t//2, averaged over pixels and channels: (b, t // 2 + 1)."""
    t = frames.shape[1]
    values = frames.astype(np.float32).reshape(len(frames), t, -1) / 255
    values = (values - values.mean(axis=1, keepdims=True)) * np.hanning(t + 2)[1:-1, None]
    power = np.square(np.abs(np.fft.rfft(values, axis=1))).mean(axis=2)
    power[:, 1 : (t + 1) // 2] *= 2  # one-sided: only the mean and the highest frequency occur once
    return power


def jitter_share(spectra: np.ndarray, num_frames: int) -> float:
    """Return the share of the pooled power of spectra (b, num_frames // 2 + 1) above `JITTER_ABOVE`; NaN if nothing moves."""
    power = spectra.sum(axis=0, dtype=np.float64)
    total = power.sum()
    high = np.arange(len(power)) / num_frames > JITTER_ABOVE
    return float(power[high].sum() / total) if total > 0 else float("nan")


def ratio(unit: str, **amounts: float) -> dict[str, Any]:
    """Return the quotient of two amounts (NaN over zero) and both amounts, whose keys end in their unit."""
    top, bottom = amounts.values()
    return {"value": top / bottom if bottom else float("nan"), **{f"{name}_{unit}": value for name, value in amounts.items()}}


def energy_ratio(generated: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Return the mean motion energy of the generated clips over that of the real ones; arguments are (n,) each."""
    amounts = {"generated": float(generated.mean()), "real": float(real.mean())}
    return ratio("energy", **amounts) | {"num_clips": len(generated)}


def jitter_ratio(generated: np.ndarray, real: np.ndarray, num_frames: int) -> dict[str, Any]:
    """Return the jitter of the generated clips over that of the real ones, and their mean spectra."""
    shares = {"generated": jitter_share(generated, num_frames), "real": jitter_share(real, num_frames)}
    return ratio("share", **shares) | {
        "num_clips": len(generated),
        "above_cycles_per_frame": JITTER_ABOVE,
        "generated_spectrum": generated.mean(axis=0, dtype=np.float64).tolist(),
        "real_spectrum": real.mean(axis=0, dtype=np.float64).tolist(),
    }
