"""The MUG facial expression database (Aifanti, Papachristou, Delopoulos, WIAMIS 2010), as used in the paper."""

import re
from itertools import product
from pathlib import Path

from lfdm.data.corpora.conversion import entries
from lfdm.data.corpora.published import Corpus, Survey
from lfdm.data.corpora.recordings import Segment
from lfdm.data.images import IMAGE_SUFFIXES

LABELS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")

_SESSION = "session0"
"""The only session that the published code reads of subjects that have session folders."""
_TRAIN = "008 017 021 028 030 031 034 036 037 038 039 042 043 044 045 055 060 061 062 063 071 075 076 077 083 084"
_TEST = "001 002 006 007 010 013 014 020 027 032 033 040 046 048 049 052 064 065 066 070 072 073 074 078 079 082"


def _survey(found: Survey) -> None:
    for subject in found.entries(found.source):
        if not (subject.is_dir() and re.fullmatch(r"\d{3}", subject.name)):
            found.skip(subject, "not a subject's folder (three digits)")
        elif found.corpus.split_of(subject.name) is None:
            found.skip(subject, "a subject in neither of the published lists")
        else:
            _survey_subject(found, subject)


def _survey_subject(found: Survey, subject: Path) -> None:
    inside, session = found.entries(subject), subject / _SESSION
    if session in inside and session.is_dir():
        for other in inside:
            if other != session:
                found.skip(other, f"only {_SESSION} is read, as published")
        inside = found.entries(session)
    for expression in inside:
        if not expression.is_dir() or expression.name not in LABELS:
            found.skip(expression, f"not a folder of one of {' '.join(LABELS)}")
            continue
        for take in found.entries(expression):
            if _is_take(take):
                _add(found, take, expression.name, subject.name)
            else:
                found.skip(take, "not a take (a readable folder of images)")


def _is_take(path: Path) -> bool:
    try:
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in entries(path))
    except OSError:  # a file, or a folder that cannot be read
        return False


def _add(found: Survey, take: Path, label: str, subject: str) -> None:
    split = found.corpus.split_of(subject)
    assert split is not None, "subjects in neither list were skipped"
    path = f"clips/{take.relative_to(found.source).as_posix()}.avi"
    found.add(take, {(f"subject {subject}", label, take.name): Segment(path=path, label=label, subject=subject, split=split)})


MUG = Corpus(
    name="MUG",
    layout="<subject>/<expression>/<take>/*.jpg with subjects 001 to 086",
    train_subjects=tuple(_TRAIN.split()),
    test_subjects=tuple(_TEST.split()),
    num_train=465,
    train_keys=tuple(product([f"subject {subject}" for subject in _TRAIN.split()], LABELS)),
    crop=None,
    survey=_survey,
)
"""Takes are folders of images, which store no frame rate: `FOLDER_FPS` is used."""
