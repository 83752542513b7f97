"""High dynamic range video (PQ and HLG, ITU-R BT.2100) mapped to standard dynamic range.

Shapes: an array is (H, W, 3); light is in cd/m2 (nits).
"""

import av
import numpy as np

_PQ, _HLG = 16, 18
"""Transfer functions by their number in ITU-T H.273."""
_BT2020 = 9
"""Colour primaries by their number in ITU-T H.273."""
_PEAK = 1000.0
"""Brightest light that is not clipped, in nits: the nominal peak of HLG and of most PQ material."""
_WHITE = 203.0
"""Light of diffuse white (BT.2408), in nits, which is also the peak that is mapped to 255."""
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
"""Linear RGB from BT.2020 to BT.709 primaries (BT.2087)."""
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
_STEPS = 4096
"""Entries of the tables of tone curve and sRGB curve."""
_ROWS = 64
"""Rows that are mapped at a time."""


def is_hdr(frame: av.VideoFrame) -> bool:
    """Return whether a frame says that it is PQ or HLG."""
    return frame.color_trc in (_PQ, _HLG)


def to_sdr(rgb: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Map the signal (H, W, 3) uint16 of the HDR `frame` to sRGB (H, W, 3) uint8.

    Light up to 92 nits stays as it is relative to diffuse white; brighter light is compressed by the curve of BT.2390.
    """
    linear = _pq_light if frame.color_trc == _PQ else _hlg_light
    gamut = _TO_BT709 if frame.color_primaries == _BT2020 else np.eye(3, dtype=np.float32)
    parts = (rgb[start : start + _ROWS] for start in range(0, len(rgb), _ROWS))
    return np.concatenate([_encode(_tone_map(linear(part)) @ gamut.T) for part in parts])


def _pq_light(rgb: np.ndarray) -> np.ndarray:
    return _PQ_TABLE[rgb]


def _hlg_light(rgb: np.ndarray) -> np.ndarray:
    """Return the light of a display with a peak of 1000 nits, whose system gamma is 1.2 (BT.2100)."""
    scene = _HLG_TABLE[rgb]
    return _PEAK * (scene @ _LUMINANCE)[..., None] ** 0.2 * scene


def _tone_map(light: np.ndarray) -> np.ndarray:
    """Scale each pixel so that its brightest channel follows the tone curve: light relative to `_WHITE`."""
    peak = np.minimum(light.max(axis=-1, keepdims=True), _PEAK)
    index = np.sqrt(peak * np.float32(1 / _PEAK)) * (_STEPS - 1)
    return np.minimum(light, _PEAK) * _TONE_TABLE[np.rint(index).astype(np.int32)]


def _encode(linear: np.ndarray) -> np.ndarray:
    index = np.sqrt(np.clip(linear, 0, 1)) * (_STEPS - 1)
    return _SRGB_TABLE[np.rint(index).astype(np.int32)]


def _pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """Apply the EOTF of PQ (SMPTE ST 2084)."""
    power = signal ** (32 / 2523)
    return 10_000 * (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)


def _nits_to_pq(light: np.ndarray) -> np.ndarray:
    power = (light / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def _hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """Apply the inverse OETF of HLG (BT.2100): scene light in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _bt2390(light: np.ndarray) -> np.ndarray:
    """Compress light up to `_PEAK` to `_WHITE` by the EETF of BT.2390: linear up to a knee, then a Hermite spline, in PQ."""
    peak, white = _nits_to_pq(np.array(_PEAK)), _nits_to_pq(np.array(_WHITE))
    signal, top = _nits_to_pq(light) / peak, white / peak
    knee = 1.5 * top - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * top
    return _pq_to_nits(np.where(signal < knee, signal, spline) * peak)


def _srgb(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_CODES = np.linspace(0, 1, 65536)
_SQUARES = np.linspace(0, 1, _STEPS) ** 2
_PQ_TABLE = _pq_to_nits(_CODES).astype(np.float32)
_HLG_TABLE = _hlg_to_scene(_CODES).astype(np.float32)
_TONE_TABLE = (_bt2390(_PEAK * _SQUARES) / np.maximum(_PEAK * _SQUARES, 1e-9) / _WHITE).astype(np.float32)
"""Factor by the square root of the light relative to `_PEAK`."""
_TONE_TABLE[0] = 1 / _WHITE
_SRGB_TABLE = np.rint(255 * _srgb(_SQUARES)).astype(np.uint8)
"""sRGB value by the square root of the linear one."""
