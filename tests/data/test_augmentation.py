"""Colours, mirroring and swapping: one draw for all frames of a sample."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from lfdm.data.augmentation import ColorJitter, PairAugmentation, augment_pair

NO_JITTER = ColorJitter(amounts=(0, 0, 0, 0))
KINDS = ("brightness", "contrast", "saturation", "hue")


def single(**amounts: float) -> ColorJitter:
    brightness, contrast, saturation, hue = (amounts.get(kind, 0.0) for kind in KINDS)
    return ColorJitter(amounts=(brightness, contrast, saturation, hue))


def drawn(seed: int, step: int, amount: float) -> float:
    """What the jitter draws for its `step`-th kind: an order, then four numbers."""
    rng = np.random.default_rng(seed)
    rng.permutation(4)
    return float(rng.uniform(-1, 1, 4)[step]) * amount


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 9, 11, 3), dtype=np.uint8)


def test_brightness_contrast_and_saturation_follow_their_definitions(frames: np.ndarray) -> None:
    values = frames.astype(np.float64)
    grey = values @ [0.299, 0.587, 0.114]
    mean = grey.mean(axis=(1, 2))[:, None, None, None]
    centres = {"brightness": 0.0, "contrast": mean, "saturation": grey[..., None]}
    for step, (name, centre) in enumerate(centres.items()):
        factor = 1 + drawn(3, step, 0.4)
        expected = np.clip(centre + factor * (values - centre), 0, 255)
        got = single(**{name: 0.4}).apply(frames, np.random.default_rng(3))
        assert got.dtype == np.uint8
        assert np.abs(got - expected).max() <= 0.501, name
        assert np.abs(got - values).max() > 4, name


def test_hue_is_a_turn_in_hsv_space(frames: np.ndarray) -> None:
    frames[0, 0, :6] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 255, 255], [10, 200, 200]]
    for seed in (1, 2, 3):
        shift = drawn(seed, 3, 0.5)
        got = single(hue=0.5).apply(frames, np.random.default_rng(seed)).reshape(-1, 3)
        for before, after in zip(frames.reshape(-1, 3), got, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
            expected = np.multiply(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), 255)
            assert np.abs(after - expected).max() <= 0.51


def test_jitter_draws_are_uniform_in_their_range() -> None:
    grey = np.full((1, 1, 1, 3), 100, np.uint8)
    jitter = single(brightness=64 / 255)
    values = [int(jitter.apply(grey, np.random.default_rng(seed))[0, 0, 0, 0]) for seed in range(600)]
    assert min(values) == pytest.approx(100 * (1 - 64 / 255), abs=1)
    assert max(values) == pytest.approx(100 * (1 + 64 / 255), abs=1)
    assert np.mean(values) == pytest.approx(100, abs=2)


def test_jitter_is_one_draw_for_all_frames(frames: np.ndarray) -> None:
    twice = np.stack([frames[0], frames[0]])
    got = ColorJitter().apply(twice, np.random.default_rng(0))
    assert np.array_equal(got[0], got[1])
    assert not np.array_equal(got[0], frames[0])


def test_order_is_random_only_if_set_and_draws_the_same_numbers(frames: np.ndarray) -> None:
    def results(jitter: ColorJitter) -> set[bytes]:
        class FixedAmounts(np.random.Generator):
            def uniform(self, *_: object) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
                return np.full(4, 0.9)

        return {jitter.apply(frames, FixedAmounts(np.random.PCG64(seed))).tobytes() for seed in range(60)}

    strong = ColorJitter(amounts=(0.5, 0.5, 0.5, 0.2))
    assert len(results(replace(strong, random_order=False))) == 1
    assert len(results(strong)) > 8


def test_no_jitter_changes_nothing(frames: np.ndarray) -> None:
    assert np.array_equal(NO_JITTER.apply(frames, np.random.default_rng(0)), frames)


def test_black_borders_stay_black_and_out_of_the_mean(frames: np.ndarray) -> None:
    """As when padding comes after the colours (METHOD 4), so that it does not grey."""
    jitter = ColorJitter(amounts=(0, 0.5, 0, 0), spare_borders=True)
    padded = np.zeros((len(frames), frames.shape[1] + 5, frames.shape[2] + 3, 3), np.uint8)
    inside = (slice(None), slice(2, 2 + frames.shape[1]), slice(3, None))
    picture = np.maximum(frames, 1)
    padded[inside] = picture
    result = jitter.apply(padded, np.random.default_rng(0))
    assert np.array_equal(result[inside], replace(jitter, spare_borders=False).apply(picture, np.random.default_rng(0)))
    assert not np.array_equal(result[inside], picture)
    result[inside] = 0
    assert not result.any()
    assert np.array_equal(jitter.apply(np.zeros_like(padded), np.random.default_rng(0)), np.zeros_like(padded))
    everywhere = replace(jitter, spare_borders=False)
    assert any(everywhere.apply(padded, np.random.default_rng(seed))[:, 0].any() for seed in range(4))


def test_pairs_are_swapped_or_else_mirrored(frames: np.ndarray) -> None:
    augment = PairAugmentation(jitter=NO_JITTER)
    kinds = {
        "same": frames.tobytes(),
        "swapped": frames[::-1].tobytes(),
        "mirrored": frames[:, :, ::-1].tobytes(),
    }
    n = 2000
    results = [augment_pair(frames, augment, np.random.default_rng(seed))[0].tobytes() for seed in range(n)]
    shares = {kind: results.count(value) / n for kind, value in kinds.items()}
    assert sum(shares.values()) == 1
    assert shares["swapped"] == pytest.approx(0.5, abs=0.04)
    assert shares["mirrored"] == pytest.approx(0.25, abs=0.04)
    unswapped = {augment_pair(frames, augment, np.random.default_rng(seed), may_swap=False)[0].tobytes() for seed in range(20)}
    assert unswapped == {kinds["same"], kinds["mirrored"]}
