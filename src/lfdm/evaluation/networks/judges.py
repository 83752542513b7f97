"""The networks that judge generation: those trained on the data set itself, and those read from files."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lfdm.config.video import Fit
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import ClipRecord, labels
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.loading import file_sha256
from lfdm.evaluation.metrics.appearance import FrameNetwork, FrameNetworkFeatures, cached_frame_network
from lfdm.evaluation.networks.classifier import ActionClassifier, cached_classifier
from lfdm.evaluation.networks.features import FrameFeatures, VideoFeatures, load_extractor, load_frame_extractor
from lfdm.evaluation.run import EvaluationRun
from lfdm.evaluation.settings import EXECUTABLE_EXTRACTOR, EvaluationConfig
from lfdm.folders.model_folder import WEIGHTS_NAME

EMBEDDED_VIDEO, EMBEDDED_FRAMES = "classifier", "frames"
"""The extractors that are trained on the data set."""


@dataclass
class Judges:
    """The networks that judge, None where there can be none."""

    classifier: ActionClassifier | None = None
    classifier_sha256: str = ""
    frame_network: FrameNetwork | None = None
    frame_network_sha256: str = ""
    extractors: list[VideoFeatures] = field(default_factory=list)
    frame_extractors: list[FrameFeatures] = field(default_factory=list)


def load_from_files(config: EvaluationConfig, device: torch.device) -> Judges:
    """The extractors that are files: before anything is measured, since their errors are the user's.

    Raises:
        UserError: an unknown extractor, a file that does not hold its network, or two whose figures would bear one name.
        FileNotFoundError: no such file.
        MissingExtraError: an extractor whose package is not installed.
    """
    judges = Judges()
    for spec in config.extractors:
        if spec != EMBEDDED_VIDEO:
            trust_file = config.trust_file and spec.startswith(EXECUTABLE_EXTRACTOR)
            judges.extractors.append(load_extractor(spec, trust_file=trust_file, device=device))
    for spec in config.frame_extractors:
        if spec != EMBEDDED_FRAMES:
            judges.frame_extractors.append(load_frame_extractor(spec, device=device))
    for extractors in (judges.extractors, judges.frame_extractors):
        names = [extractor.name for extractor in extractors]
        if len(set(names)) < len(names):
            raise UserError(f"the figures of extractors must have different names; got {names}: evaluate by one at a time")
    return judges


def train_judges(
    judges: Judges,
    run: EvaluationRun,
    records: Sequence[ClipRecord],
    config: EvaluationConfig,
    *,
    fit: Fit,
    progress: Progress | None,
) -> None:
    """Add those of the data set itself, trained where they are not yet kept beside its cache.

    Why one cannot be had is noted in the run.
    """
    train = [record for record in records if record.split == "train"]
    if train:
        cache = open_cache(run.clips.root, train, run.clips.image_size, fit, progress=progress)
        _train_classifier(run, cache, judges, config, progress)
        _train_frame_network(run, cache, judges, config, progress)
    else:
        _leave_out(run, config, "action_accuracy", EMBEDDED_VIDEO, "no classifier can be trained: there are no training clips")
        _leave_out(run, config, "identity", EMBEDDED_FRAMES, "no frame network can be trained: there are no training clips")


def _train_classifier(
    run: EvaluationRun, cache: ClipCache, judges: Judges, config: EvaluationConfig, progress: Progress | None
) -> None:
    known = labels(cache.records)
    if len(known) < 2:
        reason = f"no classifier can be trained: one label alone, {known}"
        return _leave_out(run, config, "action_accuracy", EMBEDDED_VIDEO, reason)
    classifier, folder = cached_classifier(
        cache,
        num_frames=run.clips.num_frames,
        training=config.classifier,
        device=run.device,
        progress=progress,
    )
    if EMBEDDED_VIDEO in config.extractors:
        name = run.clips.root.resolve().name
        judges.extractors.insert(0, load_extractor(EMBEDDED_VIDEO, classifier=classifier, data_name=name, device=run.device))
    lacking = sorted(set(labels(run.records)) - set(known))
    if lacking:
        run.left_out["generation.action_accuracy"] = f"held-out labels without training clips: {lacking}"
        return None
    judges.classifier, judges.classifier_sha256 = classifier, file_sha256(folder / WEIGHTS_NAME)
    return None


def _train_frame_network(
    run: EvaluationRun, cache: ClipCache, judges: Judges, config: EvaluationConfig, progress: Progress | None
) -> None:
    subjects = {record.subject for record in cache.records}
    if len(subjects) < 2:
        reason = f"no frame network can be trained: one subject alone, {sorted(subjects)}"
        return _leave_out(run, config, "identity", EMBEDDED_FRAMES, reason)
    network, folder = cached_frame_network(
        cache,
        training=config.frame_network,
        device=run.device,
        progress=progress,
    )
    judges.frame_network, judges.frame_network_sha256 = network, file_sha256(folder / WEIGHTS_NAME)
    if EMBEDDED_FRAMES in config.frame_extractors:
        judges.frame_extractors.insert(0, FrameNetworkFeatures(network, folder, run.clips.root.resolve().name))
    return None


def _leave_out(run: EvaluationRun, config: EvaluationConfig, figure: str, extractor: str, reason: str) -> None:
    """Note why a figure and the distances of its network are missing."""
    run.left_out[f"generation.{figure}"] = reason
    for kind, specs in (("distances", config.extractors), ("frame_distances", config.frame_extractors)):
        if extractor in specs:
            run.left_out[f"generation.{kind}.{extractor}"] = reason
