"""Exported models give the videos of the pipeline that they were exported from."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lfdm.cli import COMMANDS
from lfdm.cli.console import run
from lfdm.config.control import Control
from lfdm.config.presets import Preset
from lfdm.config.training import FewStepsConfig
from lfdm.data.video import video_info
from lfdm.denoiser.unet3d import MotionUNet3D
from lfdm.diffusion.schedulers import MotionScheduler
from lfdm.errors import UserError
from lfdm.export.exporting import export_pipeline, halve_weights
from lfdm.export.runtime import PIPELINE_FILE, OnnxPipeline
from lfdm.motion.codec import FrameCodec
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.few_steps import make_student

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow  # torch's exporter takes about 20 s a model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text()
LABELS = ("jump", "wave")
STATISTICS: dict[str, Any] = {"mean": (0.1, 0.0, 0.7), "std": (0.1, 0.2, 0.3), "low": (-1.0, -1.0, -1.0), "high": (1.0, 1.0, 1.0)}


def pipeline_of(preset: Preset, *, seed: int = 0) -> LatentFlowPipeline:
    """An untrained pipeline whose predictions are not zero."""
    pipe = LatentFlowPipeline.from_preset(preset, LABELS, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pipe.autoencoder.parameters():
            if not parameter.any():  # heads that start at zero
                parameter.normal_(std=0.1, generator=generator)
    return pipe


@pytest.fixture(scope="module")
def pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    pipe = pipeline_of(tiny_preset)
    pipe.motion_codec = FrameCodec(**STATISTICS)
    return pipe


def command_of_the_page(number: int, model: Path, out: Path) -> list[str]:
    """Return the words of a command of docs/export.md, for another model and another folder."""
    words = shlex.split(re.findall(r"^lfdm (export .*)$", PAGE, re.MULTILINE)[number], comments=True)
    words[words.index("--model") + 1], words[words.index("--out") + 1] = str(model), str(out)
    return words


@pytest.fixture(scope="module")
def exported(pipe: LatentFlowPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline, exported by the first command of docs/export.md."""
    folder = tmp_path_factory.mktemp("onnx")
    pipe.save_pretrained(folder / "model")
    assert run(COMMANDS, command_of_the_page(0, folder / "model", folder / "out"), "test") == 0
    return folder / "out"


def picture_of(pipe: LatentFlowPipeline) -> np.ndarray:
    height, width = pipe.size
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise_of(pipe: LatentFlowPipeline, num_frames: int) -> Tensor:
    cells = pipe.autoencoder.encode(torch.zeros(1, 3, *pipe.size)).latent.shape[-2:]
    return torch.randn(1, 3, num_frames, *cells, generator=torch.Generator().manual_seed(1))


def largest_difference(pipe: LatentFlowPipeline, folder: Path, *, num_frames: int = 4, scale: float = 2.0) -> int:
    """Return the largest difference of two videos of the same noise, of 255."""
    noise, options = noise_of(pipe, num_frames), {"num_frames": num_frames, "num_inference_steps": 3, "guidance_scale": scale}
    ours = pipe(picture_of(pipe), "wave", latents=noise, output_type="uint8", **options).frames
    theirs = OnnxPipeline(folder)(picture_of(pipe), "wave", noise=noise[0].numpy(), **options)
    assert isinstance(ours, np.ndarray)
    assert theirs.shape == ours[0].shape
    return int(np.abs(ours[0].astype(int) - theirs).max())


@pytest.mark.parametrize(("num_frames", "scale"), [(4, 2.0), (1, 1.0), (9, 0.0)])
def test_videos_are_those_of_the_pipeline(pipe: LatentFlowPipeline, exported: Path, num_frames: int, scale: float) -> None:
    assert largest_difference(pipe, exported, num_frames=num_frames, scale=scale) <= 1


def test_frames_before_rounding_are_within_1e_4(
    pipe: LatentFlowPipeline, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, results = OnnxPipeline(exported), []
    run_network = runtime._run
    monkeypatch.setattr(runtime, "_run", lambda name, **inputs: results.append(run_network(name, **inputs)) or results[-1])
    noise = noise_of(pipe, 4)
    runtime(picture_of(pipe), "wave", noise=noise[0].numpy(), num_frames=4, num_inference_steps=3)
    ours = pipe(picture_of(pipe), "wave", latents=noise, num_frames=4, num_inference_steps=3, output_type="pt").frames
    theirs = torch.from_numpy(results[-1][0]).transpose(1, 2)  # of the last network, the decoder: (1, 3, t, H, W)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


def test_motion_of_driving_frames_is_that_of_the_pipeline(pipe: LatentFlowPipeline, exported: Path) -> None:
    picture = picture_of(pipe)
    driving = np.stack([picture, np.roll(picture, 2, axis=1), picture[:, ::-1]])
    ours = pipe.transfer(picture, driving, relative=False, output_type="uint8").frames
    assert isinstance(ours, np.ndarray)
    assert np.abs(ours[0].astype(int) - OnnxPipeline(exported).transfer(picture, driving)).max() <= 1


def test_mixes_and_no_condition(pipe: LatentFlowPipeline, exported: Path) -> None:
    noise, runtime = noise_of(pipe, 4), OnnxPipeline(exported)
    for condition in ({"jump": 1.0, "wave": 3.0}, None):
        ours = pipe(picture_of(pipe), condition, latents=noise, output_type="uint8", num_inference_steps=2).frames
        theirs = runtime(picture_of(pipe), condition, noise=noise[0].numpy(), num_inference_steps=2)
        assert isinstance(ours, np.ndarray)
        assert np.abs(ours[0].astype(int) - theirs).max() <= 1


def test_seeds_repeat_and_differ(pipe: LatentFlowPipeline, exported: Path) -> None:
    runtime = OnnxPipeline(exported, num_threads=1)
    first, again, other = (runtime(picture_of(pipe), "wave", seed=seed, num_inference_steps=1) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_half_weights_take_half_the_space(pipe: LatentFlowPipeline, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "half")
    for path in (tmp_path / "half").glob("*.onnx"):
        halve_weights(path)
    sizes = [(folder / "denoiser.onnx").stat().st_size for folder in (tmp_path / "half", exported)]
    assert sizes[0] < 0.8 * sizes[1]
    assert largest_difference(pipe, tmp_path / "half") <= 3


def test_the_python_of_the_page_works(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exported").symlink_to(exported)
    Path("src").symlink_to(ROOT / "src")
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(block, "export.md", "exec"), {})
    assert video_info("wave.mp4").fps == 8


def test_programs_of_torch_need_no_code_of_ours(pipe: LatentFlowPipeline, exported: Path, tmp_path: Path) -> None:
    assert run(COMMANDS, command_of_the_page(1, exported.parent / "model", tmp_path / "programs"), "test") == 0
    encoder = torch.export.load(tmp_path / "programs" / "encoder.pt2").module()
    image = torch.rand(3, 3, *pipe.size)
    with torch.no_grad():
        assert torch.allclose(encoder(image)[-1], pipe.autoencoder.encode(image).latent, atol=1e-5)
    with pytest.raises(UserError, match="format torch"):
        OnnxPipeline(tmp_path / "programs")


def test_rectangles_convex_upsampling_and_noise_prediction(tiny_preset: Preset, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"codec": "grid", "normalize": False, "clamp_to_range": False, "prediction_type": "v_prediction"}
    preset = replace(
        tiny_preset,
        image_size=(32, 48),
        autoencoder=replace(tiny_preset.autoencoder, num_downs=2, upsampling="convex"),
        diffusion=replace(tiny_preset.diffusion, **changes),
    )
    pipe = pipeline_of(preset)
    export_pipeline(pipe, tmp_path / "out")
    assert largest_difference(pipe, tmp_path / "out") <= 1


def test_models_of_the_paper_with_a_sampler_of_ours(tiny_paper_preset: Preset, tmp_path: Path) -> None:
    diffusion = replace(tiny_paper_preset.diffusion, condition="labels")
    pipe = LatentFlowPipeline.from_preset(replace(tiny_paper_preset, diffusion=diffusion), LABELS)
    with pytest.raises(UserError, match="sampler"):
        export_pipeline(pipe, tmp_path / "out")
    pipe.scheduler = MotionScheduler(prediction_type="epsilon")
    export_pipeline(pipe, tmp_path / "out")
    assert largest_difference(pipe, tmp_path / "out") <= 1


def test_a_distilled_network_makes_one_prediction_a_step_with_any_sampler(pipe: LatentFlowPipeline, tmp_path: Path) -> None:
    student = make_student(pipe, FewStepsConfig())
    assert isinstance(student.unet, MotionUNet3D)
    assert student.unet.guidance_embedding is not None
    torch.nn.init.normal_(student.unet.guidance_embedding.weight, generator=torch.Generator().manual_seed(0))
    export_pipeline(student, tmp_path / "out")
    for scale in (0.0, 1.0, 3.0):
        assert largest_difference(student, tmp_path / "out", scale=scale) <= 1
    runtime = OnnxPipeline(tmp_path / "out")
    for scale in (0.5, 4.5):
        with pytest.raises(UserError, match="guidance_scale"):
            runtime(picture_of(student), "wave", guidance_scale=scale)
    settings = json.loads((tmp_path / "out" / PIPELINE_FILE).read_text())
    settings["schedule"]["sampler"] = "dpmpp_2m"
    (tmp_path / "out" / PIPELINE_FILE).write_text(json.dumps(settings))
    assert largest_difference(student, tmp_path / "out") > 1
    student.scheduler = MotionScheduler.from_config(student.scheduler.config, sampler="dpmpp_2m")
    assert largest_difference(student, tmp_path / "out") <= 1


def test_bad_input_of_the_command_is_one_line(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "--model", str(exported.parent / "model"), "--out", str(tmp_path)]
    (tmp_path / "photo.png").touch()
    assert run(COMMANDS, command, "test") == 2
    assert "photo.png" in capsys.readouterr().err
    assert run(COMMANDS, [*command, "--format", "torch", "--dtype", "float16"], "test") == 2
    assert "float32" in capsys.readouterr().err


def test_an_older_torch_is_refused(pipe: LatentFlowPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.compiler, "is_exporting", raising=False)
    with pytest.raises(UserError, match=re.escape(torch.__version__)):
        export_pipeline(pipe, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_folders_and_values_that_are_not_allowed(pipe: LatentFlowPipeline, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lfdm export"):
        OnnxPipeline(tmp_path)
    shutil.copytree(exported, tmp_path / "other")
    settings = json.loads((exported / PIPELINE_FILE).read_text())
    for change, words in (
        ({"version": 9}, "version must be 3; got 9"),
        ({"files": {**settings["files"], "encoder": "../encoder.onnx"}}, "names in its folder"),
    ):
        (tmp_path / "other" / PIPELINE_FILE).write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=words):
            OnnxPipeline(tmp_path / "other")
    runtime = OnnxPipeline(exported)
    with pytest.raises(UserError, match="follows tracks"):
        runtime(picture_of(pipe), "wave", control=Control(pins=((1, 1),)))
    with pytest.raises(UserError, match="'fly'"):
        runtime(picture_of(pipe), "fly")
    with pytest.raises(UserError, match="num_frames"):
        runtime(picture_of(pipe), "wave", num_frames=100)
