import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lfdm.condition.encoder import ConditionEncoder
from lfdm.condition.text import encode_tokens
from lfdm.errors import MissingExtraError, UserError

LABELS = ("jump", "raise arms", "wave")


def test_embeddings_are_orthogonal_with_unit_variance_entries() -> None:
    table = ConditionEncoder.from_labels(LABELS, 16).table
    torch.testing.assert_close(table @ table.T, 16 * torch.eye(3), rtol=0, atol=1e-4)


def test_more_labels_than_dimensions_still_differ_with_equal_norms() -> None:
    table = ConditionEncoder.from_labels([f"label {i}" for i in range(40)], 8).table
    torch.testing.assert_close(table.norm(dim=1), torch.full((40,), 8**0.5))
    assert torch.cdist(table, table).add(10 * torch.eye(40)).min() > 0.1


def test_the_table_depends_on_the_seed() -> None:
    first, again, other = (ConditionEncoder.from_labels(LABELS, 8, seed=seed).table for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_known_labels_keep_their_embeddings_and_new_ones_are_orthogonal_to_all_of_them() -> None:
    known = ConditionEncoder.from_labels(("jump", "wave", "walk"), 8, seed=3)
    encoder = ConditionEncoder.from_labels(("spin", "wave", "bow"), 8, seed=3, known=known)
    assert torch.equal(encoder.table[1], known.table[1])
    rows = torch.cat((known.table, encoder.table[[0, 2]]))
    torch.testing.assert_close(rows @ rows.T, 8 * torch.eye(5), atol=1e-5, rtol=0)
    alike = ConditionEncoder.from_labels(("walk", "jump"), 8, known=known)
    assert torch.equal(alike.table, known.table[[2, 0]])
    crowded = ConditionEncoder.from_labels([f"label {i}" for i in range(7)], 8, known=known).table
    torch.testing.assert_close(crowded.norm(dim=1), torch.full((7,), 8**0.5))
    with pytest.raises(UserError, match=r"known .*16; got 8"):
        ConditionEncoder.from_labels(("jump",), 16, known=known)


def test_encode_returns_the_rows_of_labels_and_zeros_for_none() -> None:
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


def test_a_learned_null_condition_is_copied() -> None:
    known, plain = (ConditionEncoder.from_labels(["a"], 6, learned_null=learned) for learned in (True, False))
    encoder = ConditionEncoder.from_labels(["a", "b"], 6, learned_null=True)
    encoder.start_from(known)
    assert torch.equal(encoder.null, known.null)
    assert encoder.null is not known.null
    encoder.start_from(plain)
    assert not encoder.null.any()
    assert isinstance(encoder.null, torch.nn.Parameter)
    plain.start_from(known)
    assert not plain.null.any()


def test_known_labels_keep_their_attention_pooling(tiny_bert: Path) -> None:
    known = ConditionEncoder.from_text(["wave", "jump and turn"], tiny_bert, pooling="attention")
    torch.nn.init.normal_(known.query, std=10)
    kept = ConditionEncoder.from_labels(["wave", "jump and turn"], known.dim, known=known)
    torch.testing.assert_close(kept.table, known.embeddings(), rtol=0, atol=1e-6)
    assert (kept.table - known.table).abs().max() > 1e-3


def test_a_query_is_copied_only_for_the_same_text_model(tiny_bert: Path) -> None:
    known, encoder = (ConditionEncoder.from_text(["a"], tiny_bert, pooling="attention") for _ in range(2))
    torch.nn.init.normal_(known.query)
    encoder.start_from(known)
    assert torch.equal(encoder.query, known.query)
    torch.nn.init.zeros_(encoder.query)
    known.text_encoder = "another"
    encoder.start_from(known)
    assert not encoder.query.any()


@pytest.mark.parametrize("labels", [LABELS, ()], ids=["labels", "no labels"])
def test_save_and_load_bit_for_bit(tmp_path: Path, labels: tuple[str, ...]) -> None:
    encoder = ConditionEncoder.from_embeddings(labels, torch.randn(len(labels), 5), text_encoder="some-model")
    encoder.save_pretrained(tmp_path / "condition")
    loaded = ConditionEncoder.from_pretrained(tmp_path / "condition")
    assert torch.equal(loaded.table, encoder.table)
    assert loaded.labels == labels
    assert loaded.text_encoder == "some-model"


def test_an_unknown_label_names_the_nearest_and_all_labels() -> None:
    encoder = ConditionEncoder.from_labels(LABELS, 8)
    with pytest.raises(UserError, match=r"'waev'; did you mean 'wave'\? labels: jump, raise arms, wave"):
        encoder.encode(["waev"])
    with pytest.raises(UserError, match="no labels"):
        ConditionEncoder(dim=8).encode(["wave"])
    with pytest.raises(UserError, match=r"a condition must be a label, a mix or None; got \['wave'\]"):
        encoder.encode([["wave"]])  # type: ignore[list-item]
    with pytest.raises(UserError, match="a mix must have labels as keys; got 1"):
        encoder.encode({1: 1.0})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("wave", "wave"), "labels .*'wave' twice"),
        (("wave", " "), "labels .*got ' '"),
        (("wave", "\x1b[31mred"), "labels must be one line each"),
        ("wave", "labels must be a list.*got 'wave'"),
    ],
)
def test_impossible_labels(labels: tuple[str, ...] | str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ConditionEncoder(labels=labels, dim=8)


def test_a_table_needs_one_row_per_label() -> None:
    with pytest.raises(UserError, match="one row per label"):
        ConditionEncoder.from_embeddings(LABELS, torch.zeros(2, 8))


def test_the_word_none_is_the_null_condition() -> None:
    encoder = ConditionEncoder.from_labels(LABELS, 8, learned_null=True)
    assert torch.equal(encoder.encode(["None", None]), encoder.null.expand(2, -1))


# -------------------------------------------------------------------------------------------------------------- text

TEXTS = ("wave", "Turn Left", "Turn Right now")


def test_stored_labels_do_not_need_the_text_model(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ConditionEncoder.from_text(TEXTS, tiny_bert).save_pretrained(tmp_path / "condition")
    expected = encode_tokens(TEXTS, tiny_bert).mean()
    monkeypatch.setitem(sys.modules, "transformers", None)
    loaded = ConditionEncoder.from_pretrained(tmp_path / "condition")
    assert loaded.labels == TEXTS
    assert loaded.text_encoder == str(tiny_bert)
    torch.testing.assert_close(loaded.encode([*TEXTS, None]), torch.cat((expected, torch.zeros(1, 16))))


def test_free_text_is_embedded_along_with_labels(tiny_bert: Path) -> None:
    encoder = ConditionEncoder.from_text(TEXTS, tiny_bert, learned_null=True)
    embedding = encoder.encode(["jump", "wave", None, "Turn Wings", "jump"])
    free = encode_tokens(["jump", "Turn Wings"], tiny_bert).mean()
    torch.testing.assert_close(embedding, torch.stack([free[0], encoder.table[0], encoder.null, free[1], free[0]]))


def test_free_text_without_its_text_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ConditionEncoder.from_embeddings(LABELS, torch.zeros(3, 16), text_encoder=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"'waev' is not among the stored labels \(did you mean 'wave'.*gone' not found"):
        encoder.encode(["waev"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"'waev' is not among the stored labels .* pip install 'lfdm\[text\]'"):
        encoder.encode(["waev"])


def test_a_text_model_of_another_width_is_refused(tiny_bert: Path) -> None:
    encoder = ConditionEncoder(dim=8, text_encoder=str(tiny_bert))
    with pytest.raises(UserError, match=r"text_encoder must give 8 values; .* gives 16"):
        encoder.encode(["wave"])


def test_attention_pooling_starts_as_the_mean_and_learns_to_tell_one_word(tiny_bert: Path, tmp_path: Path) -> None:
    texts = ("Turn Left now", "Turn Right now")
    encoder = ConditionEncoder.from_text(texts, tiny_bert, pooling="attention")
    torch.testing.assert_close(encoder.encode(texts), encode_tokens(texts, tiny_bert).mean())

    def similarity() -> torch.Tensor:
        return torch.cosine_similarity(*encoder.look_up(torch.arange(2)), dim=0)

    before = similarity().item()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        similarity().backward()
        optimizer.step()
    assert similarity() < before - 0.1
    encoder.save_pretrained(tmp_path / "condition")
    loaded = ConditionEncoder.from_pretrained(tmp_path / "condition")
    assert torch.equal(loaded.encode(texts), encoder.encode(texts))
    longer = loaded.encode(["Turn Left now", "Turn Left now Spread Wings"])[:1]  # padded to the length of the other text
    torch.testing.assert_close(longer, loaded.encode(texts[:1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling must be one of .*got 'max'"),
        ({"pooling": "attention", "num_tokens": 3}, "text_encoder .*got None"),
        ({"pooling": "attention", "text_encoder": "bert"}, "num_tokens must be positive"),
        ({"num_tokens": 3}, "0 otherwise; got 3"),
    ],
)
def test_impossible_pooling(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ConditionEncoder(**options)


def test_labels_are_compared_composed_and_trimmed_and_capitals_get_a_hint() -> None:
    encoder = ConditionEncoder.from_labels(["cafe\u0301", " wave "], 8)
    assert encoder.labels == ("caf\u00e9", "wave")
    assert [encoder.index(label) for label in ("caf\u00e9", "cafe\u0301 ", "wave", " wave")] == [0, 0, 1, 1]
    with pytest.raises(UserError, match=r"'WAVE'; did you mean 'wave'\?"):
        encoder.encode("WAVE")
    with pytest.raises(UserError, match=r"labels must differ; got 'caf\u00e9' twice"):
        ConditionEncoder(labels=["caf\u00e9", "cafe\u0301"])
    more = ConditionEncoder.from_labels(["cafe\u0301", "jump"], 8, known=encoder)
    assert torch.equal(more.encode("caf\u00e9"), encoder.encode("caf\u00e9"))
