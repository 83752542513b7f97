import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.condition.encoder import ConditionEncoder
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.errors import UserError
from lfdm.folders.model_folder import CONFIG_NAME, WEIGHTS_NAME
from lfdm.motion.codec import FrameCodec


@pytest.fixture(scope="module")
def model(tiny_preset: Preset) -> LatentFlowAutoencoder:
    torch.manual_seed(0)
    model = LatentFlowAutoencoder(**to_json(tiny_preset.autoencoder))
    model.train()(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))  # statistics that are not the initial ones
    return model.eval()


@pytest.fixture
def folder(model: LatentFlowAutoencoder, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_bit_for_bit(model: LatentFlowAutoencoder, folder: Path) -> None:
    loaded = LatentFlowAutoencoder.from_pretrained(folder)
    assert not loaded.training
    assert loaded.config["predictor"] == model.config["predictor"]
    own, theirs = model.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(model.encode(image).latent, loaded.encode(image).latent)


def test_saving_again_replaces_the_folder_and_leaves_nothing_behind(model: LatentFlowAutoencoder, folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_text("old")
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG_NAME, WEIGHTS_NAME])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_saving_over_anything_else_is_refused(model: LatentFlowAutoencoder, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("keep me")
    for saved in (model, ConditionEncoder(labels=("wave",), dim=4), FrameCodec()):
        with pytest.raises(UserError, match=r"it also holds thesis\.txt; choose another name"):
            saved.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "keep me"


def test_half_saving_keeps_running_statistics_in_float32(model: LatentFlowAutoencoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "half", half=True)
    stored = load_file(tmp_path / "half" / WEIGHTS_NAME)
    own = model.state_dict()
    statistics = {name for name in stored if name.endswith(("running_mean", "running_var"))}
    assert statistics
    assert all(torch.equal(stored[name], own[name]) for name in statistics)
    weights = {name for name in stored if stored[name].is_floating_point()} - statistics
    assert {stored[name].dtype for name in weights} == {torch.float16}
    loaded = LatentFlowAutoencoder.from_pretrained(tmp_path / "half")
    assert all(torch.equal(value, own[name].half().float()) for name, value in loaded.state_dict().items() if name in weights)


def test_an_unknown_configuration_key_is_refused(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"num_heads": 3}))
    with pytest.raises(UserError, match="num_heads"):
        LatentFlowAutoencoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": "abc"}, "channels must be a whole number; got 'abc'"),
        ({"channels": 1e30}, "channels must be a whole number"),
        ({"channels": -3}, "LatentFlowAutoencoder does not accept"),
        ({"num_downs": -3}, "LatentFlowAutoencoder does not accept"),
        ({"predictor": {"type": "dense", "channels": [8, "x"]}}, r"predictor\.channels must be a tuple .* of: a whole number"),
        ({"predictor": {"type": "dense", "num_regions": 3}}, r"unknown setting 'predictor\.num_regions'"),
        ({"predictor": {"type": "sparse"}}, r"predictor\.type must be one of 'dense', 'regions'.*; got 'sparse'"),
        ({"predictor": {}}, r"predictor\.type must be one of 'dense', 'regions'.*; got None"),
        ({"predictor": 3}, r"predictor must be .*got 3"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of 'zeros', 'border'; got 'mirror'"),
        ({"corners": None}, "corners must be True or False; got None"),
    ],
)
def test_an_impossible_configuration_value_is_named(folder: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message) as caught:
        LatentFlowAutoencoder.from_pretrained(folder)
    assert str(folder / CONFIG_NAME) in str(caught.value)


def test_a_folder_of_another_class_is_refused(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"_class_name": "MotionUNet3D"}))
    with pytest.raises(UserError, match="holds a MotionUNet3D"):
        LatentFlowAutoencoder.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG_NAME).write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        LatentFlowAutoencoder.from_pretrained(folder)


def test_weights_that_do_not_match_are_listed(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors["ghost.weight"] = tensors.pop("final.bias")
    tensors["first.conv.bias"] = torch.zeros(3)
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(UserError, match="does not match") as error:
        LatentFlowAutoencoder.from_pretrained(folder)
    message = str(error.value)
    assert "missing ['final.bias']" in message
    assert "unexpected ['ghost.weight']" in message
    assert "first.conv.bias (3,), needs (8,)" in message


def test_weights_that_are_a_git_lfs_pointer_name_the_command(folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=f"{WEIGHTS_NAME}: .* `git lfs pull`"):
        LatentFlowAutoencoder.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder: Path, kept: int) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        LatentFlowAutoencoder.from_pretrained(folder)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, None])
def test_missing_files_are_named(folder: Path, name: str | None) -> None:
    missing = folder / name if name else folder.parent / "nowhere"
    missing.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=missing.name):
        LatentFlowAutoencoder.from_pretrained(folder if name else missing)


def test_a_configuration_larger_than_its_weights_is_refused_before_it_is_built(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    huge = {"channels": 8192, "max_channels": 8192, "num_res_blocks": 100}  # 480 GB
    (folder / CONFIG_NAME).write_text(json.dumps(config | huge))
    with pytest.raises(UserError, match=r"safetensors does not match LatentFlowAutoencoder: missing"):
        LatentFlowAutoencoder.from_pretrained(folder)
