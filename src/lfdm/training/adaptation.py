"""Adaptation of a trained model's decoder to a new domain of images (LFDM section 3.4).

Only the decoder is trained, by the losses of stage 1, without labels. Motion predictor, encoder and stage 2 stay unchanged,
batch-norm statistics included, so that generated motion keeps its meaning.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.serialization import to_json
from lfdm.config.training import AdaptationConfig
from lfdm.data.progress import Progress
from lfdm.data.training_clips import find_clips
from lfdm.folders.files import expand_home, recover, replace_folder, write_bytes
from lfdm.folders.run_folder import find_layout
from lfdm.folders.sources import INDEX_NAME, find_folder
from lfdm.pipeline.folder import component_types
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.loop import train
from lfdm.training.processes import process_state
from lfdm.training.reports import RunSummary, StepReport
from lfdm.training.run import open_run
from lfdm.training.stage1 import AutoencoderTask, data_setting

DECODER = ("bottleneck", "ups", "final")
"""The submodules of the decoder of a `LatentFlowAutoencoder`."""


def freeze_all_but_decoder(autoencoder: LatentFlowAutoencoder) -> None:
    """Train only the decoder; the training loop then keeps all other layers in evaluation mode."""
    autoencoder.requires_grad_(False)
    for name in DECODER:
        autoencoder.get_submodule(name).requires_grad_(True)


def adapt(
    model: str | Path,
    data: str | Path,
    out: Path,
    config: AdaptationConfig,
    *,
    cache_gb: float | None = None,
    report: Callable[[StepReport], None] | None = None,
    summary: Callable[[RunSummary], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train the decoder of `model` on the training clips of `data` and return `out`, which is then also a pipeline folder.

    The same call resumes. The pipeline is written after the last step.

    Args:
        model: bundled name, pipeline folder, diffusion run folder or Hub repository.
        cache_gb: see `find_clips`.
        report: called with the metrics every `log_steps`.
        summary: called before the first step, and again once time and memory can be estimated.
        progress: called while clips are decoded.

    Raises:
        UserError: an unknown model, no training clips, or settings that contradict the run in `out` or each other,
            or another process that uses `out`.
        FileNotFoundError: no such data set, weights or model.
    """
    out, source = expand_home(out), find_clips(data, cache_gb)
    settings = {"stage": "adaptation", "model": str(model), "data": data_setting(data), "adaptation": to_json(config)}
    with open_run(out, settings, batch_size=config.optimization.batch_size) as run:
        layout = find_layout(find_folder(model))
        pipe = LatentFlowPipeline.from_pretrained(model)
        freeze_all_but_decoder(pipe.autoencoder)
        state = process_state()
        with state.local_main_process_first():  # the other processes find its cache
            cache = source.open(pipe.size, pipe.config["fit"], progress=progress)
        task = AutoencoderTask(pipe.autoencoder, config.losses(), cache)
        run.write()
        checkpoint = train(task, config.optimization, out, report=report, summary=summary)
        if state.is_main_process:
            folders = {name: layout.component(name) for name in component_types(LatentFlowPipeline)}
            _publish(layout.index, {**folders, AutoencoderTask.name: checkpoint / AutoencoderTask.name}, out)
        state.wait_for_everyone()
    return out


def _publish(index: Path, components: dict[str, Path], out: Path) -> None:
    """Copy every component's folder into `out`, and last the index, which makes it a pipeline folder."""
    for name, folder in components.items():
        recover(out / name)
        replace_folder(out / name, partial(_copy, folder))
    write_bytes(out / INDEX_NAME, (index / INDEX_NAME).read_bytes())


def _copy(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):  # copytree would hide the disk's error in a list of all files
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            shutil.copyfile(path, place)
