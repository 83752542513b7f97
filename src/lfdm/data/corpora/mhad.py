"""UTD-MHAD (Chen, Jafari, Kehtarnavaz, ICIP 2015) as used in the paper."""

import re
from itertools import product

from lfdm.data.corpora.conversion import entries
from lfdm.data.corpora.published import Corpus, Survey
from lfdm.data.corpora.recordings import Segment
from lfdm.data.video import Crop

LABELS = (
    "right arm swipe to the left",
    "right arm swipe to the right",
    "right hand wave",
    "two hand front clap",
    "right arm throw",
    "cross arms in the chest",
    "basketball shooting",
    "draw x",
    "draw circle clockwise",
    "draw circle counter clockwise",
    "draw triangle",
    "right hand bowling",
    "front boxing",
    "baseball swing from right",
    "tennis forehand swing",
    "two arms curl",
    "tennis serve",
    "two hand push",
    "knock on door",
    "hand catch",
    "pick up and throw",
    "jogging",
    "walking",
    "sit to stand",
    "stand to sit",
    "forward lunge (left foot forward)",
    "squat",
)
"""Names of actions 1 to 27."""

_TAKES = range(1, 5)
_TRAIN = ("1", "2", "3", "5")
_TEST = ("4", "6", "7", "8")
_NEVER_RELEASED = ("subject 1", "action 8", "take 4")
"""Corrupt, therefore not in the corpus, like two takes of test subjects (a23_s6_t4, a27_s8_t4)."""


def _survey(found: Survey) -> None:
    rgb, depth = found.source / "RGB", found.source / "Depth"
    for folder in (rgb, depth):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected {found.corpus.layout}")
    for path in entries(rgb):
        match = re.fullmatch(r"a([1-9]\d?)_s(\d)_t(\d)_color\.avi", path.name)
        action, subject, take = match.groups() if match else ("0", "0", "0")
        split = found.corpus.split_of(subject)
        if not (1 <= int(action) <= len(LABELS) and int(take) in _TAKES) or split is None:
            found.skip(path, "not one of a{1-27}_s{1-8}_t{1-4}_color.avi")
            continue
        name = f"a{action}_s{subject}_t{take}"
        if not (depth / f"{name}_depth.mat").is_file():
            found.skip(path, f"no Depth/{name}_depth.mat; the paper takes only clips that have one")
            continue
        clip = Segment(path=f"clips/{name}.avi", label=LABELS[int(action) - 1], subject=subject, split=split)
        found.add(path, {_key(subject, action, take): clip})


def _key(subject: object, action: object, take: object) -> tuple[str, str, str]:
    return f"subject {subject}", f"action {action}", f"take {take}"


UTD_MHAD = Corpus(
    name="UTD-MHAD",
    layout="RGB/a{1-27}_s{1-8}_t{1-4}_color.avi and Depth/a{1-27}_s{1-8}_t{1-4}_depth.mat",
    train_subjects=_TRAIN,
    test_subjects=_TEST,
    num_train=431,
    train_keys=tuple(key for ids in product(_TRAIN, range(1, len(LABELS) + 1), _TAKES) if (key := _key(*ids)) != _NEVER_RELEASED),
    crop=Crop(top=0, bottom=480, left=156, right=492, width=640, height=480),
    survey=_survey,
)
"""Cropped to 480 rows x 336 columns: at 128x128 the image is 128 rows x 89 columns, black on both sides."""
