import numpy as np
import pytest

from lfdm.evaluation.metrics.dynamics import energy_ratio, jitter_ratio, jitter_share, motion_energy, temporal_spectrum

T = 16


def wave(frequency: float, amplitude: float = 100) -> np.ndarray:
    """A clip whose every pixel swings `frequency` times per frame."""
    values = 128 + amplitude * np.sin(2 * np.pi * frequency * np.arange(T) + 0.3)
    return np.round(values).astype(np.uint8)[None, :, None, None, None].repeat(4, 2).repeat(4, 3).repeat(3, 4)


def test_energy_is_the_mean_change() -> None:
    clip = np.zeros((2, T, 4, 4, 3), np.uint8)
    clip[1, 1::2] = 51
    assert motion_energy(clip).tolist() == pytest.approx([0, 0.2])
    assert energy_ratio(motion_energy(clip[:1]), motion_energy(clip[1:]))["value"] == 0


def test_jitter_tells_slow_from_fast() -> None:
    slow, fast = (jitter_share(temporal_spectrum(wave(f)), T) for f in (1 / 16, 7 / 16))
    assert slow < 0.01
    assert fast > 0.99


def test_jitter_of_noise_is_its_share_of_the_frequencies() -> None:
    noise = np.random.default_rng(0).integers(100, 156, (4, T, 16, 16, 3)).astype(np.uint8)
    spectrum = temporal_spectrum(noise)
    assert spectrum.shape == (4, T // 2 + 1)
    assert jitter_share(spectrum, T) == pytest.approx(
        7 / 15, abs=0.03
    )  # frequencies 5 to 8 of 1 to 8, the last of which is single


def test_jitter_does_not_depend_on_how_much_moves() -> None:
    weak, strong = (wave(1 / 16, a) // 2 + wave(7 / 16, a) // 2 for a in (20, 100))
    judged = jitter_ratio(temporal_spectrum(weak), temporal_spectrum(strong), T)
    assert judged["value"] == pytest.approx(1, abs=0.03)
    assert judged["real_share"] == pytest.approx(0.5, abs=0.03)


def test_a_still_clip_has_no_jitter() -> None:
    assert np.isnan(jitter_share(temporal_spectrum(wave(0, 0)), T))
