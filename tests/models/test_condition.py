from pathlib import Path

import pytest
import torch

from lfdm.models.condition import ConditionEncoder

LABELS = ("jump", "raise arms", "wave")


def test_embeddings_are_orthogonal_with_unit_variance_entries() -> None:
    table = ConditionEncoder.from_labels(LABELS, 16).table
    torch.testing.assert_close(table @ table.T, 16 * torch.eye(3), rtol=0, atol=1e-4)


def test_more_labels_than_dimensions_still_differ_and_have_one_norm() -> None:
    table = ConditionEncoder.from_labels([f"label {i}" for i in range(40)], 8).table
    torch.testing.assert_close(table.norm(dim=1), torch.full((40,), 8**0.5))
    assert torch.cdist(table, table).add(10 * torch.eye(40)).min() > 0.1


def test_the_seed_decides_the_table() -> None:
    first, again, other = (ConditionEncoder.from_labels(LABELS, 8, seed=seed).table for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_encode_gives_the_rows_of_the_labels_and_zeros_for_none() -> None:
    encoder = ConditionEncoder.from_labels(LABELS, 8)
    embedding = encoder.encode(["wave", None, "jump"])
    assert torch.equal(embedding, torch.stack([encoder.table[2], torch.zeros(8), encoder.table[0]]))


def test_a_learned_null_condition_is_a_stored_parameter(tmp_path: Path) -> None:
    encoder = ConditionEncoder.from_labels(LABELS, 8, learned_null=True)
    assert [name for name, _ in encoder.named_parameters()] == ["null"]
    encoder.save_pretrained(tmp_path / "condition")
    loaded = ConditionEncoder.from_pretrained(tmp_path / "condition")
    assert torch.equal(loaded.encode([None])[0], encoder.null)
    assert encoder.null.abs().sum() > 0


@pytest.mark.parametrize("labels", [LABELS, ()], ids=["labels", "no labels"])
def test_save_and_load_bit_for_bit(tmp_path: Path, labels: tuple[str, ...]) -> None:
    encoder = ConditionEncoder.from_embeddings(labels, torch.randn(len(labels), 5), text_encoder="some-model")
    encoder.save_pretrained(tmp_path / "condition")
    loaded = ConditionEncoder.from_pretrained(tmp_path / "condition")
    assert torch.equal(loaded.table, encoder.table)
    assert loaded.labels == labels
    assert loaded.text_encoder == "some-model"


def test_an_unknown_label_is_answered_with_the_nearest_and_all_labels() -> None:
    encoder = ConditionEncoder.from_labels(LABELS, 8)
    with pytest.raises(ValueError, match=r"'waev'; did you mean 'wave'\? labels: jump, raise arms, wave"):
        encoder.encode(["waev"])
    with pytest.raises(ValueError, match="no labels"):
        ConditionEncoder(dim=8).encode(["wave"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("wave", "wave"), "'wave' is there twice"), (("wave", " "), "not empty"), ("wave", "list of strings")],
)
def test_impossible_labels(labels: tuple[str, ...] | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionEncoder(labels=labels, dim=8)


def test_a_table_needs_one_row_per_label() -> None:
    with pytest.raises(ValueError, match="one row per label"):
        ConditionEncoder.from_embeddings(LABELS, torch.zeros(2, 8))
