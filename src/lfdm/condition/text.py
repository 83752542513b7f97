"""Text -> embeddings by a Hugging Face text model, needed only for texts whose embedding is not stored yet.

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


@dataclass(frozen=True)
class TokenStates:
    """What a text model makes of n texts, its first token [CLS] left out.

    `states` (n, l, D) are the last hidden states, float32; `mask` (n, l) is True where there is a token, not padding.
    """

    states: Tensor
    mask: Tensor


def encode_text(texts: Sequence[str], encoder: str | Path, *, device: torch.device | str = "cpu") -> Tensor:
    """One embedding per text, (n, D) float32: the mean of its tokens' last hidden states.

    As the published checkpoints have it: evaluation mode, [CLS] left out, [SEP] included, padding left out.

    Args:
        texts: taken word for word, upper and lower case included.
        encoder: local folder, or a name of the Hugging Face Hub (read from its cache, or downloaded).

    Raises:
        MissingExtraError: transformers is not installed.
        UserError: the text model cannot be had or is none, or a text is empty or longer than it takes.
    """
    tokens = encode_tokens(texts, encoder, device=device)
    return mean_of_tokens(tokens.states, tokens.mask)


def encoder_source(encoder: str | Path) -> str:
    """What stands for a text model in stored files: a folder's absolute path, or a Hub name as it is."""
    folder = existing_path(encoder)
    return str(folder.resolve()) if folder is not None and folder.is_dir() else str(encoder)


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """The mean (n, D) of the states (n, l, D) where `mask` (n, l) is True."""
    weights = mask.to(states.dtype)
    return (states * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)


@torch.no_grad()
def encode_tokens(texts: Sequence[str], encoder: str | Path, *, device: torch.device | str = "cpu") -> TokenStates:
    """The last hidden states of every token; see `encode_text`, whose arguments and errors these are."""
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
        raise UserError(f"texts must be a list of strings; got the string {texts!r}")
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
    """Tokenizer and model, in evaluation mode and float32; safetensors alone, and no code of the model's own."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"text conditions need transformers: {INSTALL}") from error
    if Path(encoder).is_absolute() and not Path(encoder).is_dir():
        raise UserError(f"the text model {encoder!r} cannot be had; there is no such folder")
    options: dict[str, Any] = {"local_files_only": Path(encoder).is_dir(), "trust_remote_code": False}
    try:
        with _quiet():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(encoder, **options)
            model, report = _load_model(encoder, options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # RuntimeError: httpx without a connection
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise UserError(f"the text model {encoder!r} cannot be had; give its folder or its name on the Hub ({reason})") from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)  # the pooler is not used
    if missing:
        raise UserError(f"the text model {encoder!r} is not whole: missing {missing}")
    return tokenizer, model.eval().requires_grad_(False)


def _load_model(source: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The text part of a model, and transformers' report of what its files held."""
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
    """Without the libraries' lines about retries and the weights of other heads: an error must stay the only line."""
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
