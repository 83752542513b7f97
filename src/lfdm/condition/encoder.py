"""Embeddings of conditions: labels from a stored table, free text by a text model, and the null condition.

Shapes: table (num_labels, dim) · token states (n, l, dim), l the tokens of the longest text · condition embedding (b, dim).
"""

import difflib
import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from lfdm.condition.text import TokenStates, encode_tokens, encoder_source
from lfdm.config.checks import check_arguments, check_integer
from lfdm.config.predictors import MAX_WIDTH
from lfdm.config.registration import register_to_config
from lfdm.data.index import NULL_LABEL
from lfdm.data.tables import tidy
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.components import Model
from lfdm.folders.texts import is_printable

Pooling = Literal["mean", "attention"]
Condition = str | Mapping[str, float] | None
"""A label or text, several of them mixed by weight, or the null condition."""
ConditionInput = Condition | Sequence[Condition] | Tensor
"""One condition, a list of them, or embeddings (dim,) or (b, dim)."""


class ConditionEncoder(Model):
    """Looks up labels in a stored table; any other text is embedded by the text model, if there is one.

    Only a learned null condition and the query of attention pooling are trained.

    Args:
        labels: the known labels, one table row each; empty if every condition is an embedding tensor or free text.
        dim: size of an embedding.
        learned_null: the null condition is a trained vector, initialised from N(0, 1) (natops128), instead of zeros.
        text_encoder: folder or Hub name of the text model that embedded the labels and embeds free text; None for embeddings
            of our own.
        pooling: how token states become one embedding: their `mean`, as published, or `attention`, a softmax over tokens by
            one learned query. The means of texts that differ in one word are nearly equal; attention can learn to emphasise
            that word. It starts as the mean.
        num_tokens: token states stored per label; only for `attention`.

    Raises:
        UserError: an argument that is not allowed.
    """

    table: Tensor
    token_states: Tensor
    token_mask: Tensor

    @register_to_config
    def __init__(
        self,
        *,
        labels: Sequence[str] = (),
        dim: int = 768,
        learned_null: bool = False,
        text_encoder: str | None = None,
        pooling: Pooling = "mean",
        num_tokens: int = 0,
    ) -> None:
        super().__init__()
        check_arguments(ConditionEncoder, self.config)
        _check_labels(labels)
        check_integer("dim", dim, 1, MAX_WIDTH)
        _check_pooling(pooling, num_tokens, text_encoder)
        self.labels = tuple(map(tidy, labels))
        self.dim = dim
        self.text_encoder = text_encoder
        self.pooling: Pooling = pooling
        self.register_buffer("table", torch.zeros(len(labels), dim))  # with attention pooling, its starting point
        if pooling == "attention":
            self.register_buffer("token_states", torch.zeros(len(labels), num_tokens, dim))
            self.register_buffer("token_mask", torch.ones(len(labels), num_tokens, dtype=torch.bool))
            self.query = nn.Parameter(torch.zeros(dim))
        if learned_null:
            self.null = nn.Parameter(torch.randn(dim))
        else:
            self.register_buffer("null", torch.zeros(dim), persistent=False)

    @classmethod
    def from_labels(
        cls, labels: Sequence[str], dim: int, *, seed: int = 0, learned_null: bool = False, known: Self | None = None
    ) -> Self:
        """Return fixed embeddings of our own: orthogonal rows of norm sqrt(dim), so that entries have unit variance.

        With more labels than dimensions the rows are independent Gaussian vectors of the same norm. Labels of `known` keep
        their embeddings, and the others are orthogonal to them, so that what a network has learned about them stays valid.
        """
        if known is not None and known.dim != dim:
            raise UserError(f"known must have embeddings of size {dim}; got {known.dim}")
        labels = [tidy(label) for label in labels]
        rows = {} if known is None else dict(zip(known.labels, known.embeddings().detach().cpu().double(), strict=True))
        new = [label for label in labels if label not in rows]
        columns = torch.randn(dim, len(new), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if 0 < len(new) <= dim - len(rows):
            columns = torch.linalg.qr(torch.stack([*rows.values(), *columns.T], dim=1)).Q[:, len(rows) :]
        columns = columns / torch.linalg.vector_norm(columns, dim=0) * math.sqrt(dim)
        rows |= dict(zip(new, columns.T, strict=True))
        table = torch.stack([rows[label] for label in labels]) if labels else torch.zeros(0, dim)
        return cls.from_embeddings(labels, table.float(), learned_null=learned_null)

    @classmethod
    def from_embeddings(
        cls, labels: Sequence[str], table: Tensor, *, learned_null: bool = False, text_encoder: str | None = None
    ) -> Self:
        """Return an encoder of given embeddings, row i of `table` (num_labels, dim) for label i."""
        if table.ndim != 2 or len(table) != len(labels):
            raise UserError(f"table must be ({len(labels)}, dim), one row per label; got {tuple(table.shape)}")
        encoder = cls(labels=tuple(labels), dim=table.shape[1], learned_null=learned_null, text_encoder=text_encoder)
        encoder.table.copy_(table)
        return encoder

    @classmethod
    def from_text(
        cls, labels: Sequence[str], text_encoder: str | Path, *, learned_null: bool = False, pooling: Pooling = "mean"
    ) -> Self:
        """Embed the labels by a text model, once; see `lfdm.condition.text.encode_tokens` for the arguments and errors."""
        tokens = encode_tokens(labels, text_encoder)
        attention = pooling == "attention"
        encoder = cls(
            labels=tuple(labels),
            dim=tokens.states.shape[2],
            learned_null=learned_null,
            text_encoder=encoder_source(text_encoder),
            pooling=pooling,
            num_tokens=tokens.states.shape[1] if attention else 0,
        )
        encoder.table.copy_(tokens.mean())
        if attention:
            encoder.token_states.copy_(tokens.states)
            encoder.token_mask.copy_(tokens.mask)
        return encoder

    @torch.no_grad()
    def start_from(self, known: Self) -> None:
        """Copy the learned null condition of `known`, and its query if that belongs to the same text model."""
        if isinstance(self.null, nn.Parameter) and known.dim == self.dim:
            self.null.copy_(known.null)
        if self.pooling == known.pooling == "attention" and self.text_encoder == known.text_encoder:
            self.query.copy_(known.query)

    def embeddings(self) -> Tensor:
        """Return the embeddings (num_labels, dim) of the labels; with attention pooling, gradients flow to its query."""
        if self.pooling == "mean":
            return self.table
        return self._pool(TokenStates(self.token_states, self.token_mask))

    def look_up(self, rows: Tensor) -> Tensor:
        """Return the embeddings (b, dim) of table rows (b,) int64; -1 = the null condition, to which gradients flow."""
        return torch.cat((self.null[None].to(self.table), self.embeddings()))[rows + 1]

    def encode(self, condition: ConditionInput) -> Tensor:
        """Return the embeddings (b, dim) of one condition, a list of them, or embeddings (dim,) or (b, dim) given as they are.

        A condition is a label, free text where the model has a text encoder, None or the word "None" (the null condition), or a
        mix: the embeddings of its keys averaged with its weights, normalised to sum 1.

        Raises:
            UserError: an unknown label (the message lists the labels), a text encoder that is not available, a mix whose weights
                are negative, not finite or all 0, or a tensor of another shape or with values that are not finite.
            MissingExtraError: free text without transformers.
        """
        if isinstance(condition, Tensor):
            return self._check_embedding(condition)
        conditions = [condition] if condition is None or isinstance(condition, str | Mapping) else condition
        if not isinstance(conditions, Sequence):
            got = type(condition).__name__
            raise UserError(f"condition must be a label, a mix, None, a list of these, or a tensor of embeddings; got {got}")
        wrong = next((one for one in conditions if not isinstance(one, str | Mapping | None)), None)
        if wrong is not None:
            raise UserError(f"a condition must be a label, a mix or None; got {wrong!r}")
        mixes = [_weights(one) if isinstance(one, Mapping) else {one: 1.0} for one in conditions]
        names = list(dict.fromkeys(name for mix in mixes for name in mix))
        known = self._encode_names(names)
        if not any(isinstance(one, Mapping) for one in conditions):
            return known[[names.index(name) for mix in mixes for name in mix]]
        shares = known.new_tensor([[mix.get(name, 0.0) for name in names] for mix in mixes])
        return shares @ known

    def _check_embedding(self, embedding: Tensor) -> Tensor:
        rows = embedding.unsqueeze(0) if embedding.ndim == 1 else embedding
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise UserError(f"a condition tensor must be ({self.dim},) or (b, {self.dim}); got {tuple(embedding.shape)}")
        if not torch.isfinite(rows).all():
            raise UserError("the condition tensor holds values that are not finite")
        return rows.to(self.table)

    def _encode_names(self, names: Sequence[str | None]) -> Tensor:
        """Return the embeddings (n, dim) of distinct labels and texts."""
        texts = [one for one in names if one is not None and self._is_free_text(one)]
        rows = [len(self.labels) + texts.index(one) if one in texts else self.index(one) for one in names]
        if not texts:
            return self.look_up(torch.tensor(rows, dtype=torch.long, device=self.table.device))
        known = self.look_up(torch.arange(-1, len(self.labels), device=self.table.device))
        return torch.cat((known, self._embed(texts)))[torch.tensor(rows, device=known.device) + 1]

    def index(self, label: str | None) -> int:
        """Return the row of a label, -1 for None or the word "None"; UserError listing the labels if it is unknown."""
        if label is None or (label == NULL_LABEL and label not in self.labels):
            return -1
        if tidy(label) in self.labels:
            return self.labels.index(tidy(label))
        raise UserError(f"unknown label {label!r}; {self._known_labels(label)}")

    def _is_free_text(self, condition: str) -> bool:
        known = tidy(condition) in self.labels or condition == NULL_LABEL
        return self.text_encoder is not None and isinstance(condition, str) and not known

    def _known_labels(self, label: object) -> str:
        if not self.labels:
            return f"this model has no labels; give None or an embedding (b, {self.dim})"
        lowered = {known.casefold(): known for known in self.labels}
        near = [lowered[name] for name in difflib.get_close_matches(tidy(str(label)).casefold(), lowered, n=1)]
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{hint}labels: {', '.join(self.labels)}"

    def _embed(self, texts: list[str]) -> Tensor:
        """Embed free text by the text model: (n, dim)."""
        assert self.text_encoder is not None
        why = f"{texts[0]!r} is not among the stored labels ({self._known_labels(texts[0])}) and must be embedded as text"
        try:
            tokens = encode_tokens(texts, self.text_encoder, device=self.table.device)
        except MissingExtraError as error:
            raise MissingExtraError(f"{why}: {error}") from error
        except UserError as error:
            raise UserError(f"{why}: {error}") from error
        if tokens.states.shape[2] != self.dim:
            raise UserError(f"text_encoder must give {self.dim} values; {self.text_encoder!r} gives {tokens.states.shape[2]}")
        return self._pool(TokenStates(tokens.states.to(self.table), tokens.mask))

    def _pool(self, tokens: TokenStates) -> Tensor:
        if self.pooling == "mean":
            return tokens.mean()
        scores = tokens.states @ self.query.to(tokens.states) / math.sqrt(self.dim)  # (n, l)
        weights = scores.masked_fill(~tokens.mask, -math.inf).softmax(dim=1)
        return (tokens.states * weights.unsqueeze(-1)).sum(1)


def _weights(mix: Mapping[str, float]) -> dict[str | None, float]:
    """Return the weights of a mix, normalised to sum 1."""
    for name, weight in mix.items():
        if not isinstance(name, str):
            raise UserError(f"a mix must have labels as keys; got {name!r}")
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
            raise UserError(f"the weights of a mix must be finite numbers, 0 or more; got {weight!r} for {name!r}")
    total = sum(mix.values())
    if not 0 < total < math.inf:
        raise UserError(f"the weights of a mix must have a positive, finite sum; got {dict(mix)}")
    return {name: float(weight / total) for name, weight in mix.items()}


def _check_labels(labels: Sequence[str]) -> None:
    unusable = [label for label in labels if not label.strip() or not is_printable(label)]
    if unusable:
        raise UserError(f"labels must be one line each and not empty; got {unusable[0]!r}")
    repeated = sorted(name for name, count in Counter(map(tidy, labels)).items() if count > 1)
    if repeated:
        raise UserError(f"labels must differ; got {repeated[0]!r} twice")


def _check_pooling(pooling: Pooling, num_tokens: int, text_encoder: str | None) -> None:
    if pooling == "attention" and text_encoder is None:
        raise UserError("text_encoder must be given with pooling='attention', which weighs its tokens; got None")
    if (num_tokens > 0) != (pooling == "attention"):
        raise UserError(f"num_tokens must be positive with pooling='attention' and 0 otherwise; got {num_tokens}")
