"""Conditions: label embeddings in one stored table, and the null condition.

Shapes: table (num_labels, dim) · condition embedding (b, dim).
"""

import difflib
import math
from collections.abc import Sequence
from typing import Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from lfdm.models.loading import StrictLoading

NULL_LABEL = "None"
"""A clip so labelled trains the null condition, as published; it is no label of the model."""


class ConditionEncoder(StrictLoading, ModelMixin, ConfigMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Looks labels up in a stored table. Nothing but the learned null condition is trained.

    Args:
        labels: the known labels, one table row each; none where every condition comes as an embedding tensor.
        dim: size of an embedding.
        learned_null: the null condition is a trained vector, drawn from N(0, 1) here (natops128), instead of zeros.
        text_encoder: name of the text model that the table's rows were made with; None for embeddings of our own.
    """

    table: Tensor

    @register_to_config
    def __init__(
        self, *, labels: Sequence[str] = (), dim: int = 768, learned_null: bool = False, text_encoder: str | None = None
    ) -> None:
        super().__init__()
        _check_labels(labels)
        if dim < 1:
            raise ValueError(f"dim must be at least 1; got {dim}")
        self.labels = tuple(labels)
        self.dim = dim
        self.text_encoder = text_encoder
        self.register_buffer("table", torch.zeros(len(labels), dim))
        if learned_null:
            self.null = nn.Parameter(torch.randn(dim))
        else:
            self.register_buffer("null", torch.zeros(dim), persistent=False)

    @classmethod
    def from_labels(cls, labels: Sequence[str], dim: int, *, seed: int = 0, learned_null: bool = False) -> Self:
        """Fixed embeddings of our own: orthogonal rows of norm sqrt(dim), so that entries have unit variance.

        With more labels than dimensions the rows are independent Gaussian vectors of the same norm.
        """
        generator = torch.Generator().manual_seed(seed)
        if len(labels) <= dim:
            table = torch.linalg.qr(torch.randn(dim, len(labels), generator=generator, dtype=torch.float64)).Q.T
        else:
            table = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)
        table = table / torch.linalg.vector_norm(table, dim=1, keepdim=True) * math.sqrt(dim)
        return cls.from_embeddings(labels, table.float(), learned_null=learned_null)

    @classmethod
    def from_embeddings(
        cls, labels: Sequence[str], table: Tensor, *, learned_null: bool = False, text_encoder: str | None = None
    ) -> Self:
        """Given embeddings, row i of `table` (num_labels, dim) for label i, such as those of a text encoder."""
        if table.ndim != 2 or len(table) != len(labels):
            raise ValueError(f"table must be ({len(labels)}, dim), one row per label; got {tuple(table.shape)}")
        encoder = cls(labels=tuple(labels), dim=table.shape[1], learned_null=learned_null, text_encoder=text_encoder)
        encoder.table.copy_(table)
        return encoder

    def look_up(self, rows: Tensor) -> Tensor:
        """The embeddings (b, dim) of table rows (b,) int64; -1 = the null condition, to which gradients flow."""
        return torch.cat((self.null[None].to(self.table), self.table))[rows + 1]

    def encode(self, conditions: Sequence[str | None]) -> Tensor:
        """The embeddings (b, dim) of labels; None, or the word "None", = the null condition.

        Raises:
            ValueError: an unknown label (the message lists the labels).
        """
        if isinstance(conditions, str):
            raise ValueError(f"conditions must be a list of labels; got the single label {conditions!r}")
        rows = [self.index(condition) for condition in conditions]
        return self.look_up(torch.tensor(rows, dtype=torch.long, device=self.table.device))

    def index(self, label: str | None) -> int:
        """The row of a label, -1 of None or the word "None"; ValueError listing the labels if it has none."""
        if label is None or (label == NULL_LABEL and label not in self.labels):
            return -1
        if label in self.labels:
            return self.labels.index(label)
        if not self.labels:
            raise ValueError(f"unknown label {label!r}: this model has no labels; give None or an embedding (b, {self.dim})")
        near = difflib.get_close_matches(str(label), self.labels, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown label {label!r}; {hint}labels: {', '.join(self.labels)}")


def _check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str):
        raise ValueError(f"labels must be a list of strings; got the string {labels!r}")
    wrong = [label for label in labels if not isinstance(label, str) or not label.strip()]
    if wrong:
        raise ValueError(f"labels must be strings that are not empty; got {wrong[0]!r}")
    twice = sorted({label for label in labels if list(labels).count(label) > 1})
    if twice:
        raise ValueError(f"labels must differ; {twice[0]!r} is there twice")
