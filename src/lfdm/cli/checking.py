"""`lfdm data check`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from lfdm.cli.console import Values, progress_bar
from lfdm.cli.options import pick_device
from lfdm.data.index import read_index
from lfdm.errors import UserError
from lfdm.folders.files import expand_home

if TYPE_CHECKING:
    from lfdm.data.checking.data_check import CheckResult


def data_check(
    data: Annotated[Path, Positional, arg(metavar="DIR")],
    *,
    model: str | None = None,
    device: str | None = None,
    num_workers: int | None = None,
) -> Values:
    """Check a clip data set for what usually goes wrong: too little data, leaks, moving cameras, cuts, hidden figures.

    Warnings do not change the exit code; nothing is written.

    Args:
        data: Clip data set.
        model: Stage 1 trained on such clips (run folder, pipeline folder or bundled name), which estimates how much of a figure
            the first frame shows; needed where the exact motion is not stored.
        device: Device of the model: cpu, cuda, cuda:1, ...; by default the GPU if there is one.
        num_workers: Threads; by default one per core.
    """
    from lfdm.data.checking.data_check import check_data, check_estimate

    if model is None and device is not None:
        raise UserError(f"--device has no effect without --model; got {device!r}")
    with progress_bar() as update:
        found = check_data(data, num_workers=num_workers, progress=update)
        if model is not None:
            from lfdm.evaluation.visibility import visible_by_label
            from lfdm.pipeline.transfer import Stage1Pipeline

            stage1 = Stage1Pipeline.from_pretrained(model, device=pick_device(device))
            broken = {path for check in found.checks if check.name == "broken clips" for path in check.clips}
            records = [record for record in read_index(data) if record.path not in broken]
            estimate = visible_by_label(stage1, expand_home(data), records, progress=update)
            found = replace(found, checks=(*found.checks, check_estimate(estimate)), estimated_visible=estimate)
    print(f"{data}: {found.num_clips} clips of {found.num_subjects} subjects, {found.num_labels} labels")
    for check in found.checks:
        print_check(check)
    return {"data": data, **asdict(found)}


def print_check(check: "CheckResult") -> None:
    """Print one line of a report."""
    print(f"{check.verdict:<13}{check.name:<17}{check.text}")
