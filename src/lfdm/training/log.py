"""The log of a training run: scalars in metrics.jsonl, pictures in samples/, and both in TensorBoard if it is installed."""

import io
import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from lfdm.folders.disk import naming_disk_errors
from lfdm.folders.files import write_bytes
from lfdm.folders.run_folder import SAMPLES_DIR

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"
GIF_MILLISECONDS = 125
"""Duration of a frame."""


class RunLog:
    """The log of the run folder `out`, continued at `step`; later entries are dropped."""

    def __init__(self, out: Path, *, step: int) -> None:
        self.out = out
        self.writer = None
        out.mkdir(parents=True, exist_ok=True)
        _drop_later(out / METRICS_NAME, step)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("TensorBoard is not installed (pip install 'lfdm[train]'); scalars go only to %s", METRICS_NAME)
            return
        self.writer = SummaryWriter(out / TENSORBOARD_DIR, purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append a line of metrics."""
        path = self.out / METRICS_NAME
        with naming_disk_errors(path), path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def panel(self, step: int, picture: np.ndarray) -> None:
        """Store a picture (H, W, 3) as PNG or a clip (t, H, W, 3) as GIF, and show the same bytes in TensorBoard."""
        frames = [Image.fromarray(frame) for frame in (picture if picture.ndim == 4 else picture[None])]
        encoded = io.BytesIO()
        if picture.ndim == 4:
            frames[0].save(encoded, "GIF", save_all=True, append_images=frames[1:], duration=GIF_MILLISECONDS, loop=0)
        else:
            frames[0].save(encoded, "PNG")
        path = self.out / SAMPLES_DIR / f"step-{step:08d}.{'gif' if picture.ndim == 4 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, encoded.getvalue())
        if self.writer is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

            height, width = picture.shape[-3:-1]
            image = Summary.Image(height=height, width=width, encoded_image_string=encoded.getvalue())
            self.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag="panel", image=image)]), step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _drop_later(path: Path, step: int) -> None:
    """Drop the lines after `step`, and incomplete ones, from a file of metrics."""
    if not path.is_file():
        return
    text = path.read_text(errors="replace")
    kept = "".join(f"{line}\n" for line in text.splitlines() if _step_of(line) <= step)
    if kept != text:
        write_bytes(path, kept.encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # truncated when the process was killed
        return float("inf")
