"""The run folder of a training: checked, locked for as long as it trains, and written before the first step."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfdm.folders.lock import locked
from lfdm.folders.run_folder import MODEL_DIR, check_run, prepare_run
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.processes import naming_a_lost_process, process_state, require_equal_shares


@dataclass(frozen=True)
class OpenRun:
    """A run folder whose lock this training holds."""

    out: Path
    settings: dict[str, Any]
    free: Collection[str]

    def write(self, pipeline: LatentFlowPipeline | None = None) -> None:
        """Write the settings and, unless they are there, the components of `pipeline` except its U-Net; every process calls this.

        It is called only once the caches are made, so that settings that the clips contradict leave no run behind.
        """
        state = process_state()
        if state.is_main_process:
            prepare_run(self.out, self.settings, free=self.free)
            if pipeline is not None and not (self.out / MODEL_DIR).is_dir():
                pipeline.save_pretrained(self.out / MODEL_DIR, leave_out=["unet"])
        state.wait_for_everyone()


@contextmanager
def open_run(out: Path, settings: dict[str, Any], *, batch_size: int, free: Collection[str] = ()) -> Iterator[OpenRun]:
    """Hold the run folder `out` during the block; every process of a training calls this with the same arguments.

    Args:
        settings, free: see `prepare_run`.
        batch_size: samples per step, over all processes.

    Raises:
        UserError: the settings contradict the run in `out` or differ between processes, the processes cannot share a batch,
            another command uses `out`, or, during the block, another process of the training has ended.
    """
    with naming_a_lost_process():
        require_equal_shares(settings, batch_size)
        check_run(out, settings, free=free)
        with locked(out, hold=process_state().is_main_process):
            yield OpenRun(out, settings, free)
