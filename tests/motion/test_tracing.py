import importlib

import pytest
import torch
from torch import Tensor, nn

from lfdm.motion import tracing


class _Traced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if tracing.is_exporting() else x


@pytest.mark.parametrize("has_is_exporting", [True, False], ids=["torch 2.7 and newer", "torch 2.6"])
def test_exports_are_noticed(has_is_exporting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_is_exporting:
        monkeypatch.delattr(torch.compiler, "is_exporting", raising=False)
    importlib.reload(tracing)
    monkeypatch.undo()  # torch's export needs it
    network, x = _Traced(), torch.zeros(2)
    assert torch.equal(network(x), x)
    assert torch.equal(torch.export.export(network, (x,)).module()(x), x + 1)
    importlib.reload(tracing)
