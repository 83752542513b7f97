"""The command that follows points of a clip."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lfdm.cli.console import Values
from lfdm.cli.options import ModelOptions, import_torch
from lfdm.config.control import MAX_PATH, MAX_TRACKS
from lfdm.errors import UserError

DEFAULT_POINTS = 4


def track(
    clip: Annotated[Path, Positional, arg(metavar="CLIP")],
    *,
    out: Path = Path("control.json"),
    points: tuple[str, ...] = (),
    num_points: int | None = None,
    num_frames: int | None = None,
    overwrite: bool = False,
    model: Annotated[ModelOptions, arg(name="")] = ModelOptions(),  # noqa: B008 - frozen
) -> Values:
    """Follow points of a clip and write their paths as a control for `lfdm generate --control`.

    Args:
        clip: Video of any common format, gif or folder of frames.
        out: File to write.
        points: Points X,Y of the first frame, in pixels.
        num_points: Number of points to find that move most, without --points; 4 by default.
        num_frames: Number of frames to use from the start of the clip; by default all.
        overwrite: Replace the file if it exists.
    """
    import_torch()
    from lfdm.config.checks import check_integer
    from lfdm.config.control import Control
    from lfdm.data.video import read_video
    from lfdm.pipeline.clip_tracks import track_clip
    from lfdm.pipeline.control_file import parse_point, write_control

    if points and num_points is not None:
        raise UserError(f"--num-points has no effect with --points; got {num_points}")
    count = check_integer("num_points", DEFAULT_POINTS if num_points is None else num_points, 1, MAX_TRACKS)
    if num_frames is not None:
        check_integer("num_frames", num_frames, 2, MAX_PATH)
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; choose another name or give --overwrite")
    chosen = [parse_point(text, "points") for text in points]
    frames = read_video(clip, max_frames=MAX_PATH if num_frames is None else num_frames)
    check_integer(f"{clip}: frames", len(frames), 2, MAX_PATH)
    drags = track_clip(model.open_stage1(), frames, chosen or count, model.fit)
    written = write_control(out, Control(drags=drags, size=frames.shape[1:3]))
    print(written)
    return {"control": written}
