"""Published checkpoints, tiny ones in their layout: imported, compared with recorded outputs, refused where they do not fit."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lfdm import LatentFlowAutoencoder, LatentFlowPipeline, MotionUNet3D
from lfdm.condition.encoder import ConditionEncoder
from lfdm.condition.text import encode_tokens
from lfdm.config.presets import PRESETS, Preset
from lfdm.config.serialization import to_json
from lfdm.errors import MissingExtraError, UserError
from lfdm.folders.model_folder import load_exactly
from lfdm.folders.run_folder import find_model
from lfdm.published.importing import PUBLISHED_LABELS, add_labels, import_released, parse_labels
from lfdm.published.weights import convert_autoencoder, convert_unet
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion
from tests.command_line import Lfdm

GOLDEN = Path(__file__).parents[1] / "golden" / "released"
TINY: dict[str, Any] = runpy.run_path(str(GOLDEN / "make.py"))
KINDS = ("mug", "natops")
State = dict[str, dict[str, Tensor]]
WriteFiles = Callable[[State], tuple[Path, Path]]
Imported = tuple[str, Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteFiles:
    return lambda state: TINY["write_checkpoints"](state, tmp_path)


@pytest.fixture(scope="module", params=KINDS)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return request.param, TINY["import_tiny"](request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def natops(tmp_path: Path) -> Path:
    return TINY["import_tiny"]("natops", tmp_path)


# ------------------------------------------------------------------------------------------------- numbers and layout


def test_an_imported_pipeline_reproduces_recorded_outputs(imported: Imported) -> None:
    kind, folder = imported
    pipe = LatentFlowPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    ours, recorded = TINY["outputs"](pipe), load_file(GOLDEN / f"{kind}.safetensors")
    assert ours.keys() == recorded.keys()
    for name, value in recorded.items():
        spread = float(value.std()) or 1.0
        torch.testing.assert_close(ours[name], value, atol=1e-3 * spread, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_the_learned_null_condition_comes_from_the_unet_file(imported: Imported) -> None:
    kind, folder = imported
    null = TINY["networks"](kind)["diffusion"].get("denoise_fn.null_cond_emb", torch.zeros(1, 16))
    pipe = LatentFlowPipeline.from_pretrained(folder)
    assert torch.equal(pipe.embed_condition([None]), null)
    assert (null.abs().sum() > 0) == (kind == "natops")


@pytest.mark.parametrize("kind", KINDS)
def test_the_recorded_layout_is_that_of_the_configuration(kind: str) -> None:
    stored = json.loads((GOLDEN / f"{kind}.json").read_text())
    assert stored == json.loads(json.dumps(TINY["layout"](TINY["PRESETS"][kind])))


@pytest.mark.parametrize("preset", ["mug128", "natops128"])
def test_the_tiny_layouts_are_the_published_one(preset: str) -> None:
    keys = Path(__file__).parents[3] / "shared" / "parity" / f"{preset}.keys.json"
    if not keys.is_file():
        pytest.skip(f"no published layout: {keys} is absent")
    assert json.loads(json.dumps(TINY["layout"](PRESETS[preset]))) == json.loads(keys.read_text())


# ---------------------------------------------------------------------------------------------- every tensor counts


NETWORKS = ("generator", "region_predictor", "bg_predictor", "diffusion")


@pytest.mark.parametrize("network", NETWORKS)
def test_any_missing_or_misshapen_tensor_is_refused(network: str) -> None:
    state, preset = TINY["networks"]("mug"), TINY["PRESETS"]["mug"]
    stage1, unet = LatentFlowAutoencoder(**to_json(preset.autoencoder)), MotionUNet3D(**to_json(preset.unet))

    def load() -> None:
        if network == "diffusion":
            load_exactly(unet, convert_unet(state["diffusion"]).weights, "flowdiff.pth")
        else:
            load_exactly(stage1, convert_autoencoder(**{name: state[name] for name in NETWORKS[:3]}), "RegionMM.pth")

    load()
    for i, name in enumerate(list(state[network])):
        value = state[network].pop(name)
        with pytest.raises(UserError, match=r"missing (tensors )?\['"):
            load()
        state[network][name] = torch.zeros(3, 5)
        if i % 3 == 0:
            with pytest.raises(UserError, match=r"misshapen (tensors )?\[|must be the (Gaussian|rotary frequencies)"):
                load()
        state[network][name] = value


@pytest.mark.parametrize(
    ("network", "name"),
    [("generator", "first.conv.weight"), ("bg_predictor", "fc.bias"), ("diffusion", "denoise_fn.mid_block1.mlp.1.bias")],
)
def test_a_missing_tensor_is_named_and_nothing_is_written(network: str, name: str, write: WriteFiles, tmp_path: Path) -> None:
    state = TINY["networks"]("mug")
    del state[network][name]
    stage1, stage2 = write(state)
    with pytest.raises(UserError, match=r"(RegionMM|flowdiff)\.pth .*does not match .* missing \['"):
        import_released(TINY["PRESETS"]["mug"], tmp_path / "model", autoencoder=stage1, diffusion=stage2)
    assert not (tmp_path / "model").exists()


def test_unexpected_tensors_and_entries_are_named(write: WriteFiles, tmp_path: Path) -> None:
    preset, state = TINY["PRESETS"]["mug"], TINY["networks"]("mug")
    state["diffusion"]["denoise_fn.surprise.weight"] = torch.zeros(1)
    stage1, stage2 = write(state)
    with pytest.raises(UserError, match=r"flowdiff\.pth .* unexpected \['surprise\.weight'\]"):
        import_released(preset, tmp_path / "model", diffusion=stage2)
    with pytest.raises(
        ValueError, match=r"missing \['diffusion'\], unexpected \['generator', 'region_predictor', 'bg_predictor'\]"
    ):
        import_released(preset, tmp_path / "model", diffusion=stage1)


@pytest.mark.parametrize(("file", "preset"), [("mug", "natops"), ("natops", "mug")])
def test_a_file_of_another_preset_is_refused(file: str, preset: str, write: WriteFiles, tmp_path: Path) -> None:
    _, stage2 = write(TINY["networks"](file))
    with pytest.raises(UserError, match=r"read as tiny-.* missing \['up\.0\.resample"):
        import_released(TINY["PRESETS"][preset], tmp_path / "model", diffusion=stage2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_condition_must_match_the_preset(kind: str, write: WriteFiles, tmp_path: Path) -> None:
    state = TINY["networks"](kind)
    name = "denoise_fn.null_cond_emb"
    if state["diffusion"].pop(name, None) is None:
        state["diffusion"][name] = torch.zeros(1, 16)
    _, stage2 = write(state)
    with pytest.raises(UserError, match=r"null_cond_emb.*(missing|unexpected) \['null'\]"):
        import_released(TINY["PRESETS"][kind], tmp_path / "model", diffusion=stage2)


def test_another_schedule_is_refused(write: WriteFiles, tmp_path: Path) -> None:
    state = TINY["networks"]("mug")
    state["diffusion"]["betas"] = torch.linspace(1e-4, 0.02, 1000)
    _, stage2 = write(state)
    with pytest.raises(UserError, match="betas must be that of the cosine schedule"):
        import_released(TINY["PRESETS"]["mug"], tmp_path / "model", diffusion=stage2)


class Touch:
    """Creates a file when unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return open, (self.path, "w")


def test_a_file_that_would_execute_code_is_refused(lfdm: Lfdm, tmp_path: Path) -> None:
    torch.save({"diffusion": Touch(tmp_path / "touched")}, tmp_path / "evil.pth")
    code, _, err = lfdm("import", "--preset", "mug128", "--diffusion", tmp_path / "evil.pth", "--out", tmp_path / "model")
    assert code == 2
    assert "no code from checkpoints is executed" in err
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


# ------------------------------------------------------------------------------------------------------------- halves


def test_the_stages_can_be_imported_in_either_order(imported: Imported, write: WriteFiles, tmp_path: Path) -> None:
    kind, whole = imported
    preset = TINY["PRESETS"][kind]
    stage1, stage2 = write(TINY["networks"](kind))
    halves: list[dict[str, Path]] = [{"autoencoder": stage1}, {"diffusion": stage2}]
    for order in (halves, halves[::-1]):
        out = tmp_path / "-".join(order[0])
        import_released(preset, out, **order[0])
        assert not (out / "model_index.json").exists()
        import_released(preset, out, **order[1])
        for path in whole.rglob("*.*"):
            if path.name != "README.md":  # names the folder
                assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()


def test_training_can_start_from_an_imported_autoencoder(write: WriteFiles, tmp_path: Path) -> None:
    state = TINY["networks"]("mug")
    stage1, _ = write(state)
    mraa = torch.load(stage1, weights_only=True)
    mraa = {name: mraa[name] for name in NETWORKS[:3]}
    rest = {"avd_network": {"id_encoder.weight": torch.zeros(2)}, "epoch_reconstruction": 5, "optimizer_avd": {"state": {}}}
    torch.save(mraa | rest, tmp_path / "mraa.pth")
    done = import_released(TINY["PRESETS"]["mug"], tmp_path / "model", autoencoder=tmp_path / "mraa.pth")
    assert not done.has_diffusion
    model = LatentFlowAutoencoder.from_pretrained(find_model(tmp_path / "model", "autoencoder"))
    assert torch.equal(model.first.conv.weight, state["generator"]["first.conv.weight"])


def test_both_trainings_take_an_imported_autoencoder(
    write: WriteFiles, puppets_dir: Path, tiny_preset: Preset, tmp_path: Path
) -> None:
    optimization = replace(tiny_preset.autoencoder_training.optimization, num_steps=1, learning_rate=1e-9, warmup_steps=0)
    preset = replace(
        TINY["PRESETS"]["mug"],
        autoencoder_training=replace(tiny_preset.autoencoder_training, optimization=optimization, match_weight=0.0),
        diffusion=replace(TINY["PRESETS"]["mug"].diffusion, condition="labels", num_inference_steps=2),
        diffusion_training=replace(tiny_preset.diffusion_training, optimization=optimization),
    )
    stage1, _ = write(TINY["networks"]("mug"))
    folder = import_released(TINY["PRESETS"]["mug"], tmp_path / "stage1", autoencoder=stage1).path
    imported = LatentFlowAutoencoder.from_pretrained(folder / "autoencoder")
    train_autoencoder(preset, puppets_dir, tmp_path / "run1", init=folder)
    trained = LatentFlowAutoencoder.from_pretrained(find_model(tmp_path / "run1", "autoencoder"))
    for name, value in imported.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), value, atol=1e-6, rtol=0)
    train_diffusion(preset, puppets_dir, folder, tmp_path / "run2")
    assert LatentFlowPipeline.from_pretrained(tmp_path / "run2").condition.labels == ("jump", "wave")


def test_a_folder_of_another_preset_or_kind_is_not_replaced(natops: Path, write: WriteFiles, tmp_path: Path) -> None:
    stage1, stage2 = write(TINY["networks"]("mug"))
    with pytest.raises(UserError, match="was imported with another preset than tiny-mug"):
        import_released(TINY["PRESETS"]["mug"], natops, diffusion=stage2)
    with pytest.raises(UserError, match=r"also holds RegionMM\.pth"):
        import_released(TINY["PRESETS"]["mug"], tmp_path, autoencoder=stage1)
    with pytest.raises(UserError, match=r"preset .*mug128, mhad128, natops128 .*got 'flow64'"):
        import_released("flow64", tmp_path / "new", autoencoder=stage1)
    with pytest.raises(UserError, match="got neither"):
        import_released("mug128", tmp_path / "new")


# ------------------------------------------------------------------------------------------------------------- labels


def test_an_imported_model_takes_none_and_tensors_without_transformers(
    imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    pipe = LatentFlowPipeline.from_pretrained(imported[1])
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(3, 64, 64)
    for condition in (None, torch.randn(16)):
        assert pipe(image, condition, num_inference_steps=1, output_type="pt").motion.num_frames == 4
    with pytest.raises(MissingExtraError, match=r"'anger' is not among the stored labels .*pip install 'lfdm\[text\]'"):
        pipe.embed_condition("anger")


def test_added_labels_are_stored_and_free_text_is_embedded(
    natops: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    null = ConditionEncoder.from_pretrained(natops / "condition").null
    add_labels(natops, ("Turn Left", "wave"), tiny_bert)
    add_labels(natops, ("wave", "Fold Wings"))
    pipe = LatentFlowPipeline.from_pretrained(natops)
    assert pipe.condition.labels == ("Turn Left", "wave", "Fold Wings")
    expected = torch.cat((encode_tokens(["Fold Wings", "jump"], tiny_bert).mean(), null[None]))
    torch.testing.assert_close(pipe.embed_condition(["Fold Wings", "jump", None]), expected)
    monkeypatch.setitem(sys.modules, "transformers", None)
    torch.testing.assert_close(pipe.embed_condition("Fold Wings"), expected[:1])


def test_labels_need_a_model_that_takes_text(natops: Path, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no imported diffusion model"):
        add_labels(tmp_path, ("wave",), tiny_bert)
    ConditionEncoder.from_labels(["wave"], 16).save_pretrained(natops / "condition")
    with pytest.raises(UserError, match="its own label embeddings"):
        add_labels(natops, ("jump",), tiny_bert)
    ConditionEncoder(dim=8, text_encoder="bert-base-cased").save_pretrained(natops / "condition")
    with pytest.raises(UserError, match=r"text_encoder must give 8 .*gives 16"):
        add_labels(natops, ("jump",), tiny_bert)


def test_labels_are_a_preset_a_file_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("Turn Left\n\nStop, then go\n")
    assert parse_labels(str(tmp_path / "labels.txt")) == ("Turn Left", "Stop, then go")
    assert parse_labels("wave, jump,wave") == ("wave", "jump")
    assert {name: len(parse_labels(name)) for name in PUBLISHED_LABELS} == {"mug128": 7, "mhad128": 27, "natops128": 24}
    with pytest.raises(UserError, match="got ' , '"):
        parse_labels(" , ")
    every = PUBLISHED_LABELS["mhad128"]
    assert parse_labels(",".join(every)) == every  # too long for the name of a file
    assert parse_labels("~nobody, wave") == ("~nobody", "wave")
    (tmp_path / "labels.txt").write_bytes("wave\n".encode("utf-8-sig"))
    assert parse_labels(str(tmp_path / "labels.txt")) == ("wave",)
    (tmp_path / "labels.txt").write_bytes("Gruß".encode("latin-1"))
    with pytest.raises(UserError, match=r"labels\.txt is not UTF-8 text"):
        parse_labels(str(tmp_path / "labels.txt"))


# ------------------------------------------------------------------------------------------------------- command line


def test_the_command_imports_says_how_to_add_labels_and_adds_them(
    lfdm: Lfdm, write: WriteFiles, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", replace(TINY["PRESETS"]["mug"], name="tiny"))
    stage1, stage2 = write(TINY["networks"]("mug"))
    out = tmp_path / "model"
    code, printed, _ = lfdm("import", "--preset", "tiny", "--autoencoder", stage1, "--diffusion", stage2, "--out", out)
    assert code == 0
    assert printed.splitlines()[0] == str(out)
    assert f"lfdm import --labels tiny --out {out}" in printed.splitlines()[1]
    code, printed, _ = lfdm("import", "--labels", "wave,Turn Left", "--text-encoder", tiny_bert, "--out", out)
    assert (code, printed) == (0, "labels: wave, Turn Left\n")
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64), "green").save(image)
    made = lfdm("generate", image, "Turn Left", "--model", out, "--num-inference-steps", 1, "--out", tmp_path / "left.gif")
    assert made[0] == 0
    assert (tmp_path / "left.gif").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --preset"),
        (["--diffusion", "x.pth"], "give --preset"),
        (["--preset", "mug128"], "got neither"),
        (["--text-encoder", "x"], "without labels"),
        (["--preset", "mug128", "--diffusion", "x.pth"], "no checkpoint x.pth"),
    ],
)
def test_wrong_options_are_one_line(lfdm: Lfdm, arguments: list[str], message: str, tmp_path: Path) -> None:
    code, _, err = lfdm("import", "--out", tmp_path / "model", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
