"""Encode text by a Hugging Face text model; needed only for texts whose embedding is not stored yet.

Shapes: token states (n, l, D), mask (n, l), embedding (n, D), with l the tokens of the longest text.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.files import existing_path

INSTALL = "pip install 'lfdm[text]'"


@dataclass(frozen=True, eq=False)
class TokenStates:
    """The last hidden states of n texts, without the first token [CLS]."""

    states: Tensor
    """(n, l, D) float32."""
    mask: Tensor
    """(n, l) bool, False for padding."""

    def mean(self) -> Tensor:
        """Average the tokens of each text, [SEP] included, as the published checkpoints do: (n, D)."""
        weights = self.mask.to(self.states.dtype)
        return (self.states * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)


def encoder_source(encoder: str | Path) -> str:
    """Return the name of a text model to store: a folder's absolute path, or a Hub name as it is."""
    folder = existing_path(encoder)
    return str(folder.resolve()) if folder is not None and folder.is_dir() else str(encoder)


@torch.no_grad()
def encode_tokens(texts: Sequence[str], encoder: str | Path, *, device: torch.device | str = "cpu") -> TokenStates:
    """Compute the last hidden states of every token, with the model in evaluation mode.

    Args:
        texts: taken word for word; case matters.
        encoder: local folder, or Hub name (read from the cache, or downloaded).

    Raises:
        MissingExtraError: transformers is not installed.
        UserError: the text model is not available or incomplete, or a text is empty or too long for it.
    """
    _check_texts(texts)
    tokenizer, model = _load(encoder_source(encoder))
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    _check_lengths(texts, inputs["attention_mask"], encoder, tokenizer, model)
    output = model.to(device)(input_ids=inputs["input_ids"].to(device), attention_mask=inputs["attention_mask"].to(device))
    states, mask = output.last_hidden_state, inputs["attention_mask"].to(device).bool()
    if tokenizer.cls_token_id is not None and bool((inputs["input_ids"][:, 0] == tokenizer.cls_token_id).all()):
        states, mask = states[:, 1:], mask[:, 1:]
    return TokenStates(states, mask)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UserError(f"texts must be a list of strings; got {texts!r}")
    if not texts:
        raise UserError("texts must hold at least one text; got none")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"texts must be strings that are not empty; got {text!r}")


def _check_lengths(texts: Sequence[str], mask: Tensor, encoder: str | Path, tokenizer: Any, model: Any) -> None:
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", math.inf))
    length, longest = mask.sum(1).max(0)
    if length > most:
        raise UserError(f"{encoder} takes at most {most} tokens; got {int(length)} for {texts[int(longest)][:40]!r}...")


@functools.lru_cache(maxsize=1)
def _load(encoder: str) -> tuple[Any, Any]:
    """Load the tokenizer and the model, in evaluation mode and float32; only safetensors, and no code from the model's files."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"text conditions need transformers: {INSTALL}") from error
    if Path(encoder).is_absolute() and not Path(encoder).is_dir():
        raise UserError(f"text model {encoder!r} not found: there is no such folder")
    options: dict[str, Any] = {"local_files_only": Path(encoder).is_dir(), "trust_remote_code": False}
    try:
        with _quiet():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(encoder, **options)
            model, report = _load_model(encoder, options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # RuntimeError: httpx without a connection
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise UserError(f"text model {encoder!r} is not available; give its folder or its name on the Hub ({reason})") from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)  # the pooler is not used
    if missing:
        raise UserError(f"text model {encoder!r} is incomplete: missing {missing}")
    return tokenizer, model.eval().requires_grad_(False)


def _load_model(source: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load the text part of a model, and transformers' report of missing and unexpected weights."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, **options)
    options = {**options, "config": config, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    try:
        return transformers.AutoModelForTextEncoding.from_pretrained(source, **options)
    except ValueError as error:
        if "Unrecognized configuration" not in str(error):
            raise
    return transformers.AutoModel.from_pretrained(source, **options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' lines about retries and unused weights, so that an error is the only line."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as library_log

    libraries: list[Any] = [hub, library_log]
    before = [library.get_verbosity() for library in libraries]
    bars = library_log.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
    library_log.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, before, strict=True):
            library.set_verbosity(level)
        if bars:
            library_log.enable_progress_bar()
