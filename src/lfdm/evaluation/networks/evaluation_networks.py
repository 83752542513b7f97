"""The networks of one evaluation: those read from files, and those trained on the data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lfdm.config.video import Fit
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import ClipRecord, labels
from lfdm.data.progress import Progress
from lfdm.errors import UserError
from lfdm.evaluation.networks.classifier import ActionClassifier, load_or_train_classifier
from lfdm.evaluation.networks.extractors import load_extractor, load_frame_extractor
from lfdm.evaluation.networks.features import ClassifierFeatures, FrameFeatures, FrameNetworkFeatures, VideoFeatures
from lfdm.evaluation.networks.frame_network import FrameNetwork, load_or_train_frame_network
from lfdm.evaluation.run import EvaluationRun
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.folders.files import file_sha256
from lfdm.folders.model_folder import WEIGHTS_NAME

CLASSIFIER, FRAMES = "classifier", "frames"
"""The extractors that are trained on the data set."""


@dataclass(eq=False)
class EvaluationNetworks:
    """The networks that measure videos; None for one that cannot be trained on this data set."""

    classifier: ActionClassifier | None = None
    classifier_sha256: str = ""
    frame_network: FrameNetwork | None = None
    frame_network_sha256: str = ""
    extractors: list[VideoFeatures] = field(default_factory=list)
    frame_extractors: list[FrameFeatures] = field(default_factory=list)


def load_from_files(config: EvaluationConfig, device: torch.device) -> EvaluationNetworks:
    """Load the extractors that are files. Called before anything is measured, since their errors are the user's.

    Raises:
        UserError: an unknown extractor, a file of another network, or two extractors with the same name.
        FileNotFoundError: no such file.
        MissingExtraError: an extractor whose package is not installed.
    """
    networks = EvaluationNetworks(
        extractors=[
            load_extractor(spec, trust_file=config.trust_file, device=device) for spec in config.extractors if spec != CLASSIFIER
        ],
        frame_extractors=[load_frame_extractor(spec, device=device) for spec in config.frame_extractors if spec != FRAMES],
    )
    for extractors in (networks.extractors, networks.frame_extractors):
        names = [extractor.name for extractor in extractors]
        if len(set(names)) < len(names):
            raise UserError(f"extractors must have different names; got {names}: evaluate with one at a time")
    return networks


def add_trained_networks(
    networks: EvaluationNetworks,
    run: EvaluationRun,
    records: Sequence[ClipRecord],
    config: EvaluationConfig,
    *,
    fit: Fit,
    progress: Progress | None,
) -> None:
    """Add the networks of the data set, training those that are not stored next to its cache yet.

    A network that cannot be trained is missing; the reason is added to `run.left_out`.
    """
    train = [record for record in records if record.split == "train"]
    if not train:
        reason = "cannot be trained: there are no training clips"
        _leave_out(run, config.extractors, "action_accuracy", "distances", CLASSIFIER, f"the classifier {reason}")
        _leave_out(run, config.frame_extractors, "identity", "frame_distances", FRAMES, f"the frame network {reason}")
        return
    cache = open_cache(run.clips.root, train, run.clips.image_size, fit, skip_broken=True, progress=progress)
    _add_classifier(networks, run, cache, config, progress)
    _add_frame_network(networks, run, cache, config, progress)


def _add_classifier(
    networks: EvaluationNetworks,
    run: EvaluationRun,
    cache: ClipCache,
    config: EvaluationConfig,
    progress: Progress | None,
) -> None:
    known = labels(cache.records)
    if len(known) < 2:
        reason = f"the classifier cannot be trained: there is only one label, {known}"
        _leave_out(run, config.extractors, "action_accuracy", "distances", CLASSIFIER, reason)
        return
    classifier, folder = load_or_train_classifier(
        cache, num_frames=run.clips.num_frames, training=config.classifier, device=run.device, progress=progress
    )
    sha256 = file_sha256(folder / WEIGHTS_NAME)
    if CLASSIFIER in config.extractors:
        networks.extractors.insert(0, ClassifierFeatures(classifier, sha256, run.clips.root.resolve().name))
    unknown = sorted(set(labels(run.records)) - set(known))
    if unknown:
        run.left_out["generation.action_accuracy"] = f"held-out labels without training clips: {unknown}"
    else:
        networks.classifier, networks.classifier_sha256 = classifier, sha256


def _add_frame_network(
    networks: EvaluationNetworks,
    run: EvaluationRun,
    cache: ClipCache,
    config: EvaluationConfig,
    progress: Progress | None,
) -> None:
    subjects = {record.subject for record in cache.records}
    if len(subjects) < 2:
        reason = f"the frame network cannot be trained: there is only one subject, {sorted(subjects)}"
        _leave_out(run, config.frame_extractors, "identity", "frame_distances", FRAMES, reason)
        return
    network, folder = load_or_train_frame_network(cache, training=config.frame_network, device=run.device, progress=progress)
    networks.frame_network, networks.frame_network_sha256 = network, file_sha256(folder / WEIGHTS_NAME)
    if FRAMES in config.frame_extractors:
        features = FrameNetworkFeatures(network, networks.frame_network_sha256, run.clips.root.resolve().name)
        networks.frame_extractors.insert(0, features)


def _leave_out(run: EvaluationRun, specs: Sequence[str], figure: str, distances: str, extractor: str, reason: str) -> None:
    """Note why a figure, and the distances of its network if requested, are missing."""
    run.left_out[f"generation.{figure}"] = reason
    if extractor in specs:
        run.left_out[f"generation.{distances}.{extractor}"] = reason
