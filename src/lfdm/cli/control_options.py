"""Options that say where points go, what stays, how much parts move and how a video ends."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction, arg

from lfdm.config.control import Control
from lfdm.errors import UserError

if TYPE_CHECKING:
    from lfdm.pipeline.control_report import ControlReport

Repeated = UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class PointOptions:
    """Where points go. Positions are X,Y in pixels of the image as it is given; each option but the file can be repeated."""

    drag: Annotated[Repeated, arg(metavar="X,Y:X,Y")] = ()
    """Point and where it goes: 20,30:40,18, or by times from 0 to 1: 20,30:28,10@0.4:40,18@1. For models that follow tracks."""
    pin: Annotated[Repeated, arg(metavar="X,Y")] = ()
    """Point that stays where it is."""
    drag_radius: float | None = None
    """Pixels around each dragged point that move with it like a rigid piece."""
    part_strength: Annotated[Repeated, arg(metavar="X,Y=VALUE|MASK=VALUE")] = ()
    """Factor, 0 to 2, of the motion of the part at a point or under the white of a picture."""
    end_image: Path | None = None
    """Picture whose pose the last frame takes."""
    control: Path | None = None
    """File with all of this, as `lfdm track` writes it; other options are added to it."""

    def read(self, condition: str | None) -> tuple[Control | None, str | None]:
        """Return the control, including labels over time in `condition`, and the condition, or None if it held such labels.

        Raises:
            UserError: a value that is not allowed, or a contradiction.
            FileNotFoundError: no such control file.
        """
        from lfdm.pipeline.control_file import parse_drag, parse_labels, parse_part_strength, parse_point, read_control

        if self.drag_radius is not None and not self.drag:
            raise UserError(f"--drag-radius has no effect without --drag; got {self.drag_radius:g}")
        given = Control() if self.control is None else read_control(self.control)
        labels = () if condition is None else parse_labels(condition)
        if labels and given.labels:
            raise UserError(f"labels over time must be in CONDITION or in {self.control}; got both")
        control = replace(
            given,
            drags=(*given.drags, *(parse_drag(text, self.drag_radius) for text in self.drag)),
            pins=(*given.pins, *(parse_point(text, "pin") for text in self.pin)),
            strengths=(*given.strengths, *map(parse_part_strength, self.part_strength)),
            end_image=self.end_image or given.end_image,
            labels=labels or given.labels,
        )
        return (None if control == Control() else control), (None if labels else condition)

    def inputs(self) -> list[Path]:
        """Return the files that are read."""
        return [path for path in (self.end_image, self.control) if path is not None]


def report_lines(report: "ControlReport | None") -> list[str]:
    """Return a line for each drag and pin that misses its target, for every video."""
    if report is None:
        return []
    count = len(report.distance)
    return [f"{line} (video {sample})" if count > 1 else line for sample in range(count) for line in report.messages(sample)]
