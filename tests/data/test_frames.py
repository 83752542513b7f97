"""Single decoded frames converted to RGB."""

from collections.abc import Sequence
from typing import Any, cast

import av
import numpy as np
import pytest

from lfdm.data.frames import FrameConverter
from lfdm.data.hdr import to_sdr


def hdr_frame(signal: float, transfer: int) -> np.ndarray:
    frame = av.VideoFrame(2, 2, "rgb48le")
    frame.color_trc, frame.color_primaries = transfer, 9
    return to_sdr(np.full((2, 2, 3), round(signal * 65535), np.uint16), frame)[0, 0]


@pytest.mark.parametrize(("transfer", "signals"), [(16, (0.0, 0.4405, 0.5807, 0.7518, 1.0)), (18, (0.0, 0.5, 0.75, 1.0))])
def test_hdr_light_is_mapped_in_order_and_stays_grey(transfer: int, signals: Sequence[float]) -> None:
    """PQ of 0, 58, 203 (diffuse white), 1,000 and 10,000 nits; HLG of black, half, diffuse white and peak."""
    greys = np.array([hdr_frame(signal, transfer) for signal in signals]).astype(int)
    assert np.ptp(greys, axis=1).max() <= 1
    assert (np.diff(greys[:, 0]) >= 0).all()
    assert (greys[0] == 0).all()
    assert greys[-1].min() >= 254
    white = greys[signals.index(0.5807 if transfer == 16 else 0.75), 0]
    assert 200 < white < 235


def test_dark_hdr_light_keeps_its_ratio_to_white() -> None:
    """50 nits are 0.246 of diffuse white, which is 137 in sRGB."""
    assert np.abs(hdr_frame(0.4403, 16).astype(int) - 137).max() <= 2


def test_a_frame_whose_side_data_cannot_be_listed_is_turned_by_its_rotation() -> None:
    """PyAV raises for kinds of side data that it does not know, such as the view of a stereo video."""

    class StereoFrame:
        rotation = -90

        @property
        def side_data(self) -> Any:
            raise ValueError("29 is not a valid Type")

        format, width, height = av.VideoFormat("rgb24"), 64, 32

    assert FrameConverter(None).size(cast(av.VideoFrame, StereoFrame())) == (32, 64)
