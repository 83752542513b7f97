import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfdm.errors import UserError
from lfdm.evaluation.networks import extractors
from lfdm.evaluation.networks.classifier import ActionClassifier
from lfdm.evaluation.networks.extractors import (
    I3DFeatures,
    TorchScriptI3DFeatures,
    VideoMAEFeatures,
    load_extractor,
    load_frame_extractor,
)
from lfdm.evaluation.networks.features import ClassifierFeatures, kernel_name, resize_and_crop, to_8_bits
from lfdm.evaluation.networks.i3d import I3D


def clip(frames: int, height: int = 16, width: int = 16, *, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- preprocessing


def test_pixels_are_rounded_to_8_bits() -> None:
    values = torch.tensor([-0.2, 0.0, 0.49 / 255, 0.51 / 255, 254.7 / 255, 1.3])
    torch.testing.assert_close(255 * to_8_bits(values), torch.tensor([0.0, 0, 0, 1, 255, 255]))
    recorded = torch.arange(256) / 255
    torch.testing.assert_close(to_8_bits(recorded), recorded, rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 6), (7, 4), (20, 12)])
def test_resizing_is_bilinear_and_cropping_central(height: int, width: int) -> None:
    """Against the formula written out: pixel i of n samples the old axis at (i + 0.5) old / n - 0.5, held at its ends."""
    video, size = clip(2, height, width).double(), 8
    new = [size if n == min(height, width) else -(-n * size // min(height, width)) for n in (height, width)]
    lines = []
    for old, n in zip((height, width), new, strict=True):
        matrix = torch.zeros(n, old, dtype=torch.float64)
        for i in range(n):
            at = min(max((i + 0.5) * old / n - 0.5, 0), old - 1)
            low = int(at)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, old - 1)] += at - low
        start = (n - size) // 2
        lines.append(matrix[start : start + size])
    expected = lines[0] @ video @ lines[1].T
    torch.testing.assert_close(resize_and_crop(video, size), expected)


def test_frames_of_the_right_size_are_left_alone() -> None:
    video = clip(3, 8, 8)
    assert torch.equal(resize_and_crop(video, 8), video)


# ---------------------------------------------------------------- the embedded classifier


@pytest.fixture
def classifier() -> ActionClassifier:
    torch.manual_seed(0)
    return ActionClassifier(labels=["jump", "wave"], num_frames=6, input_size=16, channels=(8, 8, 16, 16)).eval()


def test_classifier_features_are_what_its_logits_come_from(classifier: ActionClassifier) -> None:
    extractor = ClassifierFeatures(classifier, "ab", "puppets")
    assert (extractor.name, extractor.dim, extractor.min_frames) == ("FVD[puppets-classifier]", 32, 6)
    video = clip(6)
    found = extractor(video)
    assert found.shape == (2, 32)
    torch.testing.assert_close(classifier.head(found), classifier(video))


def test_classifier_features_do_not_depend_on_the_batch_and_read_long_clips_uniformly(classifier: ActionClassifier) -> None:
    extractor = ClassifierFeatures(classifier, "ab", "puppets")
    video = clip(11)
    torch.testing.assert_close(extractor(video)[1:], extractor(video[1:]))
    assert torch.equal(extractor(video), extractor(video[:, :, ::2]))


def test_a_still_clip_has_the_features_of_every_still_clip(classifier: ActionClassifier) -> None:
    """Who is shown says nothing here: the frame distance is for that."""
    still = clip(1, batch=3).expand(-1, -1, 6, -1, -1)
    found = ClassifierFeatures(classifier, "ab", "puppets")(still)
    torch.testing.assert_close(found, found[:1].expand(3, -1))


# ---------------------------------------------------------------- I3D, plain state dict


@pytest.fixture(scope="module")
def i3d_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(I3D().state_dict(), path)
    return path


@pytest.mark.slow
def test_i3d_features_are_its_logits_of_prepared_frames(i3d_file: Path) -> None:
    extractor = load_extractor(f"i3d:{i3d_file}")
    assert (extractor.name, kernel_name(extractor), extractor.dim, extractor.min_frames) == ("FVD", "KVD", 400, 10)
    assert extractor.sha256 == sha256(i3d_file)
    video = clip(10, 24, 30, batch=1)
    network = I3D().eval()
    network.load_state_dict(torch.load(i3d_file, weights_only=True))
    frames = (video[0] * 255).round().transpose(0, 1) / 255
    frames = F.interpolate(frames, (224, 280), mode="bilinear", align_corners=False)[..., 28:252]
    with torch.no_grad():
        expected = network((2 * frames - 1).transpose(0, 1)[None])
    torch.testing.assert_close(extractor(video), expected, rtol=1e-4, atol=1e-6)


def test_pytorch_i3ds_own_weights_have_another_epsilon_and_name(i3d_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {m.eps for m in I3DFeatures(i3d_file).network.modules() if isinstance(m, nn.BatchNorm3d)} == {1e-5}
    monkeypatch.setattr(extractors, "RGB_IMAGENET_SHA256", sha256(i3d_file))
    extractor = I3DFeatures(i3d_file)
    assert extractor.name == "FVD[i3d-rgb-imagenet]"
    assert {m.eps for m in extractor.network.modules() if isinstance(m, nn.BatchNorm3d)} == {1e-3}


@pytest.mark.slow
def test_i3d_reads_files_without_batch_counts(i3d_file: Path, tmp_path: Path) -> None:
    weights = torch.load(i3d_file, weights_only=True)
    torch.save({name: value for name, value in weights.items() if "num_batches_tracked" not in name}, tmp_path / "old.pt")
    video = clip(10, 24, 30, batch=1)
    assert torch.equal(I3DFeatures(tmp_path / "old.pt")(video), I3DFeatures(i3d_file)(video))


def test_i3d_refuses_other_files(i3d_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights .*nowhere\.pt"):
        load_extractor(f"i3d:{tmp_path / 'nowhere.pt'}")
    state = torch.load(i3d_file, weights_only=True)
    state["logits.conv3d.weight"] = state["logits.conv3d.weight"][:157]
    del state["Mixed_3b.b0.bn.bias"]
    torch.save(state, tmp_path / "charades.pt")
    with pytest.raises(UserError, match=r"missing \['Mixed_3b.b0.bn.bias'\].*misshapen \['logits.conv3d.weight \(157, 1024"):
        load_extractor(f"i3d:{tmp_path / 'charades.pt'}")
    torch.save({"network": Path}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="no code from checkpoints is executed"):
        load_extractor(f"i3d:{tmp_path / 'code.pt'}")


def test_short_clips_are_refused(i3d_file: Path) -> None:
    with pytest.raises(UserError, match=r"FVD: video must be .* of at least 10 frames; got \(2, 3, 9, 16, 16\)"):
        I3DFeatures(i3d_file)(clip(9))


# ---------------------------------------------------------------- I3D, TorchScript


class Detector(nn.Module):
    """Called as StyleGAN-V's file is; its features tell how."""

    def __init__(self, dim: int = 400) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        if rescale:
            x = 2 * x / 255 - 1
        if not (resize and return_features):
            x = 0 * x
        return x.mean(dim=(2, 3, 4)).repeat(1, 1 + self.dim // 3)[:, : self.dim]


def write_detector(path: Path, dim: int = 400) -> Path:
    torch.jit.script(Detector(dim)).save(path)
    return path


def test_a_program_runs_only_at_its_hash_or_when_trusted(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "i3d_torchscript.pt")
    with pytest.raises(UserError, match=f"{sha256(path)}, not bec6519f66ea"):
        load_extractor(f"i3d-torchscript:{path}")
    extractor = load_extractor(f"i3d-torchscript:{path}", trust_file=True)
    assert extractor.sha256 == sha256(path)
    assert extractor.name == "FVD[i3d-torchscript:i3d_torchscript.pt]"  # not the known file, so not plain FVD


def test_the_known_program_gives_plain_fvd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_detector(tmp_path / "i3d_torchscript.pt")
    monkeypatch.setattr(extractors, "TORCHSCRIPT_SHA256", sha256(path))
    assert load_extractor(f"i3d-torchscript:{path}").name == "FVD"


def test_the_program_gets_8_bit_frames_and_resizes_itself(tmp_path: Path) -> None:
    extractor = TorchScriptI3DFeatures(write_detector(tmp_path / "detector.pt"), trust_file=True)
    video = clip(10)
    found = extractor(video)
    assert found.shape == (2, 400)
    torch.testing.assert_close(found[:, :3], (2 * (255 * video).round() / 255 - 1).mean(dim=(2, 3, 4)))


def test_other_programs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"400 features .* got \(2, 12\)"):
        TorchScriptI3DFeatures(write_detector(tmp_path / "small.pt", dim=12), trust_file=True)(clip(10))
    (tmp_path / "text.pt").write_text("no program")
    with pytest.raises(UserError, match=r"text\.pt is not a TorchScript file"):
        TorchScriptI3DFeatures(tmp_path / "text.pt", trust_file=True)


# ---------------------------------------------------------------- VideoMAE


def write_videomae(folder: Path, *, classifies: bool) -> tuple[Path, Any]:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'lfdm[text]'")
    config = transformers.VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=5,
    )
    torch.manual_seed(0)
    model = (transformers.VideoMAEForVideoClassification if classifies else transformers.VideoMAEModel)(config).eval()
    if classifies:
        nn.init.normal_(model.fc_norm.weight)
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("classifies", [False, True])
def test_videomae_features_are_the_mean_over_its_patches(tmp_path: Path, classifies: bool) -> None:
    folder, model = write_videomae(tmp_path / "tiny", classifies=classifies)
    extractor = load_extractor(f"videomae:{folder}")
    assert (extractor.name, extractor.dim, extractor.min_frames) == ("FVD[videomae:tiny]", 12, 4)
    assert kernel_name(extractor) == "KVD[videomae:tiny]"
    assert extractor.sha256 == sha256(folder / "model.safetensors")
    video = to_8_bits(clip(7))
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((video[:, :, ::2] - mean) / std).transpose(1, 2)
    with torch.no_grad():
        if classifies:  # the logits are a linear map of the features
            torch.testing.assert_close(model.classifier(extractor(video)), model(pixels).logits)
        else:
            torch.testing.assert_close(extractor(video), model(pixels).last_hidden_state.mean(dim=1))


def test_videomae_refuses_other_models(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(UserError, match="it is a bert"):
        VideoMAEFeatures(tiny_bert)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"VideoMAE .*empty"):
        VideoMAEFeatures(tmp_path / "empty")


# ---------------------------------------------------------------- frames


def test_frame_features_are_vggs_last_layer_averaged(tmp_path: Path, vgg19: Callable[[Path, tuple[int, ...]], Path]) -> None:
    path = vgg19(tmp_path / "vgg19.pth", (4, 4, 6, 6, 8))
    extractor = load_frame_extractor(f"vgg:{path}")
    assert (extractor.name, kernel_name(extractor), extractor.dim) == ("FID[vgg19]", "KID[vgg19]", 8)
    assert extractor.sha256 == sha256(path)
    frames = to_8_bits(clip(1, 32, 48)[:, :, 0])
    state = torch.load(path, weights_only=True)
    x, position = (
        (frames - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
        0,
    )
    for count in (2, 2, 4, 4, 1):
        for _ in range(count):
            x = F.conv2d(x, state[f"features.{position}.weight"], state[f"features.{position}.bias"], padding=1).relu()
            position += 2
        if count > 1:
            x, position = F.max_pool2d(x, 2), position + 1
    assert x.shape == (2, 8, 2, 3)
    torch.testing.assert_close(extractor(frames), x.mean(dim=(2, 3)))


def test_frames_of_other_shapes_are_refused(tmp_path: Path, vgg19: Callable[[Path, tuple[int, ...]], Path]) -> None:
    extractor = load_frame_extractor(f"vgg:{vgg19(tmp_path / 'vgg19.pth', (4, 4, 4, 4, 4))}")
    for shape in ((2, 3, 4, 32, 32), (2, 1, 32, 32), (2, 3, 8, 32)):
        with pytest.raises(UserError, match=r"frames must be \(b, 3, H, W\)"):
            extractor(torch.zeros(shape))


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize("spec", ["i3d", "i3d:", "inception:file.pth", "", "I3D:file.pt", "videomae"])
def test_unknown_extractors_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match=f"^extractors must be .*got {spec!r}"):
        load_extractor(spec)
    with pytest.raises(UserError, match=f"^frame_extractors must be .*got {spec!r}"):
        load_frame_extractor(spec)
