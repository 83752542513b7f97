"""The files of one video, and that their making ends where nobody waits for them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lfdm.data.sprite_sheets import sheet_columns
from lfdm.data.video import read_video
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.web.results import CALLS_PER_FRAME, MAX_WEBP_SIDE, VideoResult, write_result


class Stop(Exception):  # noqa: N818 - no error
    """Ends the work, as a cancelled job does."""


def write(folder: Path, *, stop_after: int = 10**6) -> tuple[VideoResult, int]:
    """A result of five frames, and how many calls its making took."""
    calls = 0

    def after_frame() -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise Stop

    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    motion = Motion(0.1 * torch.randn(1, 2, 5, 8, 8), torch.rand(1, 1, 5, 8, 8))
    return write_result(folder, "wave", "wave, seed 0", frames, motion, fps=8, after_frame=after_frame), calls


def test_every_frame_is_counted(tmp_path: Path) -> None:
    result, calls = write(tmp_path)
    assert calls == 5 * CALLS_PER_FRAME
    assert read_video(result.file).shape == (5, 256, 256, 3)
    assert set(result.sheets) == {"video", "flow", "occlusion"}
    assert not result.has_sound
    assert len(list(tmp_path.iterdir())) == 4


def test_frames_with_alpha_keep_it_in_the_file_and_in_the_player(tmp_path: Path) -> None:
    frames = np.full((3, 16, 16, 4), 255, np.uint8)
    frames[:, :8, :, 3] = 0
    motion = Motion(torch.zeros(1, 2, 3, 8, 8), torch.ones(1, 1, 3, 8, 8))
    result = write_result(tmp_path, "wave", "wave", frames, motion, fps=8, after_frame=lambda: None)
    assert result.file.suffix == ".webm"
    alpha = read_video(result.file, keep_alpha=True)[..., 3]
    assert alpha[:, :120].max() < 10
    assert alpha[:, 136:].min() > 245
    with Image.open(result.sheets["video"]) as sheet:
        assert sheet.mode == "RGBA"


def test_large_frames_are_reduced_in_the_player_only(tmp_path: Path) -> None:
    frames = np.full((2, 300, 1024, 3), 90, np.uint8)
    motion = Motion(torch.zeros(1, 2, 2, 8, 8), torch.ones(1, 1, 2, 8, 8))
    result = write_result(tmp_path, "wave", "wave", frames, motion, fps=8, after_frame=lambda: None)
    assert read_video(result.file).shape == (2, 300, 1024, 3)
    for sheet in result.sheets.values():
        with Image.open(sheet) as picture:
            assert picture.size == (512 * result.columns, 150 * 2 // result.columns)


def test_sheets_stay_below_what_webp_holds() -> None:
    assert sheet_columns(240, 256, 256, largest=MAX_WEBP_SIDE) == 16
    assert sheet_columns(225, 1024, 1024, largest=MAX_WEBP_SIDE) == 15
    assert sheet_columns(90, 1024, 2048, largest=MAX_WEBP_SIDE) == 7
    assert sheet_columns(7225, 192, 192, largest=MAX_WEBP_SIDE) == 85
    with pytest.raises(UserError, match="7226 frames of 192x192"):
        sheet_columns(7226, 192, 192, largest=MAX_WEBP_SIDE)


@pytest.mark.parametrize("stop_after", [2, 7])
def test_writing_ends_where_nobody_waits(tmp_path: Path, stop_after: int) -> None:
    with pytest.raises(Stop):
        write(tmp_path, stop_after=stop_after)
    assert not list(tmp_path.glob("*.webp"))
    assert not list(tmp_path.glob(".*"))  # nothing half written
