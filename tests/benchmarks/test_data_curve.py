"""`python -m benchmarks.data_curve`: which clips a row has, and a curve at miniature size."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data_curve
from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.data.index import ClipRecord, read_index
from lfdm.errors import UserError
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.training.expectation import expected_accuracy


def make_records(num_subjects: int = 6, num_takes: int = 3) -> list[ClipRecord]:
    form = ClipRecord(path="x", label="x", subject="x", split="train", frames=2, fps=8, width=8, height=8)
    return [
        replace(
            form, path=f"{n}-{label}-{take}", label=label, subject=f"s{n}", split="test" if n == num_subjects - 1 else "train"
        )
        for n in range(num_subjects)
        for label in ("bow", "jump", "wave")
        for take in range(num_takes)
    ]


def test_larger_parts_contain_smaller_ones_with_all_labels_equally_often() -> None:
    records = make_records()
    smaller: set[str] = set()
    for count in (3, 9, 10, 30):
        chosen = data_curve.choose_clips(records, "clips", count)
        assert len(chosen) == count
        assert {record.split for record in chosen} == {"train"}
        labels = Counter(record.label for record in chosen)
        assert max(labels.values()) - min(labels.values()) <= 1
        paths = {record.path for record in chosen}
        assert smaller < paths
        smaller = paths
    people = [{record.subject for record in data_curve.choose_clips(records, "subjects", count)} for count in (1, 2, 5)]
    assert [len(names) for names in people] == [1, 2, 5]
    assert people[0] < people[1] < people[2]
    assert len(data_curve.choose_clips(records, "subjects", 2)) == 2 * 9


def test_rows_have_equal_steps_or_equal_epochs(tiny_preset: Preset) -> None:
    rows = data_curve.plan_rows(make_records(), tiny_preset, clips=(2, 9, 45, 100), subjects=(5,))
    assert [row.name for row in rows] == ["clips-9-steps", "clips-45-steps", "subjects-5-steps", "clips-9-epochs"]
    assert [(row.stage1_steps, row.stage2_steps) for row in rows] == [(10, 10), (10, 10), (10, 10), (2, 2)]
    shared = data_curve.plan_rows(make_records(), tiny_preset, clips=(9, 45), subjects=(), share_stage1=True)
    assert [(row.stage1_steps, row.stage2_steps) for row in shared] == [(0, 10), (0, 10), (0, 2)]
    with pytest.raises(UserError, match="45 training clips of 5 subjects"):
        data_curve.plan_rows(make_records(), tiny_preset, clips=(100,), subjects=(50,))


@pytest.mark.slow
def test_a_curve_goes_on_where_it_stopped_and_is_written_after_every_row(
    quick_preset: Preset,
    quick_evaluation: EvaluationConfig,
    puppets_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'lfdm[eval]'")
    stage1, document, results = tmp_path / "stage1", tmp_path / "page.md", tmp_path / "results"
    LatentFlowAutoencoder(**to_json(quick_preset.autoencoder)).save_pretrained(stage1)
    options = data_curve.Measure(
        dataset="puppets",
        data=puppets_dir,
        out=tmp_path / "out",
        autoencoder=str(stage1),
        clips=(8,),
        subjects=(2,),
        num_steps=4,
        document=document,
        results=results,
        expectations=tmp_path / "curve.json",
    )
    evaluation = replace(quick_evaluation, num_clips=2, num_ceiling_clips=1)
    evaluate, calls = data_curve.evaluate, list[Path]()

    def stop_at_the_second(model: Path, *args: Any, **settings: Any) -> Any:
        calls.append(model)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(model, *args, **settings)

    monkeypatch.setattr(data_curve, "evaluate", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        data_curve.measure(options, quick_preset, evaluation)
    stored = results / "data-curve-puppets.json"
    assert [row["count"] for row in json.loads(stored.read_text())["rows"]] == [8]
    assert expected_accuracy(make_records(), options.expectations) is None  # no row of subjects yet
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json") if "evaluat" not in path.name}
    data_curve.measure(options, quick_preset, evaluation)
    rows = json.loads(stored.read_text())["rows"]
    assert [(row["unit"], row["count"], row["num_clips"], row["stage1_steps"], row["stage2_steps"]) for row in rows] == [
        ("clips", 8, 8, 0, 4),
        ("subjects", 2, 4, 0, 4),
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert [len(read_index(tmp_path / "out" / "data" / name)) for name in ("clips-8", "subjects-2")] == [8, 4]
    assert "| 8 clips | steps | 8 | 0 / 4 |" in document.read_text()
    assert "(images/how-much-data-puppets.png)" in document.read_text()
    assert (tmp_path / "images" / "how-much-data-puppets.png").read_bytes().startswith(b"\x89PNG")
    assert expected_accuracy(make_records(), options.expectations) is not None
