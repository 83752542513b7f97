import pickle
import runpy
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.serialization import to_json
from lfdm.errors import UserError
from lfdm.folders.model_folder import load_exactly
from lfdm.published.weights import convert_autoencoder, convert_unet, read_checkpoint, read_networks, read_tensor_dict

TINY: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "released" / "make.py"))
NETWORKS = ("generator", "region_predictor", "bg_predictor")


@pytest.fixture
def published() -> dict[str, dict[str, Tensor]]:
    networks = TINY["networks"]("mug")
    return {name: networks[name] for name in NETWORKS}


def test_every_autoencoder_tensor_finds_its_place(published: dict[str, dict[str, Tensor]]) -> None:
    weights = convert_autoencoder(**published)
    model = LatentFlowAutoencoder(**to_json(TINY["PRESETS"]["mug"].autoencoder))
    load_exactly(model, weights, "the published layout")
    given = [value for state in published.values() for name, value in state.items() if not name.endswith("down.weight")]
    assert sorted(map(id, given)) == sorted(map(id, weights.values()))


@pytest.mark.parametrize("network", NETWORKS)
def test_an_unknown_autoencoder_tensor_is_refused(published: dict[str, dict[str, Tensor]], network: str) -> None:
    published[network]["encoder.discriminator.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=rf"{network}\.encoder\.discriminator\.weight"):
        convert_autoencoder(**published)


def test_another_anti_alias_kernel_is_refused(published: dict[str, dict[str, Tensor]]) -> None:
    published["region_predictor"]["down.weight"] = torch.full((3, 1, 13, 13), 1 / 169)
    with pytest.raises(UserError, match=r"region_predictor\.down\.weight"):
        convert_autoencoder(**published)


def test_an_unknown_or_altered_tensor_of_the_unet_is_refused() -> None:
    name = "denoise_fn.init_temporal_attn.fn.fn.fn.rotary_emb.freqs"
    with pytest.raises(UserError, match="surprise"):
        convert_unet({"surprise": torch.zeros(1)})
    with pytest.raises(UserError, match="rotary"):
        convert_unet({name: torch.ones(16)})


def test_a_checkpoint_of_tensors_and_values_is_read(tmp_path: Path) -> None:
    torch.save({"generator": {"a": torch.ones(2)}, "epoch": 100}, tmp_path / "ok.pth")
    state = read_checkpoint(tmp_path / "ok.pth")
    assert state["epoch"] == 100
    assert torch.equal(state["generator"]["a"], torch.ones(2))


class Touch:
    """Creates a file when unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return open, (self.path, "w")


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"generator": Touch(tmp_path / "touched")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth is refused.*open"):
        read_checkpoint(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Touch(tmp_path / "touched"), protocol=2))
    with pytest.raises(UserError, match=r"plain\.pth is refused"):
        read_checkpoint(tmp_path / "plain.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"", b"hello world", bytes(range(256)), b"PK\x03\x04"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.pth"):
        read_checkpoint(tmp_path / "damaged.pth")


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="must hold a dictionary; got Tensor"):
        read_checkpoint(tmp_path / "tensor.pth")


def test_an_absent_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"generator": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"bomb\.pth is refused: it would unpack"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.empty(4, device="meta"),
        torch.eye(4).to_sparse(),
    ],
)
def test_tensors_that_do_not_hold_their_values_are_refused(tensor: Tensor, tmp_path: Path) -> None:
    torch.save({"diffusion": {"null_cond_emb": tensor}}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match=r"hostile\.pth.*null_cond_emb must be a dense tensor"):
        read_networks(tmp_path / "hostile.pth", ["diffusion"])


def test_a_state_with_other_values_is_no_dictionary_of_tensors(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2), 3: "x"}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth must be a dictionary of named tensors"):
        read_tensor_dict(tmp_path / "other.pth")
