"""The protocol with other generators, whose quality is known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfdm.data.cache import open_cache
from lfdm.data.index import read_index
from lfdm.errors import UserError
from lfdm.evaluation.generators import GeneratedVideos, PipelineGenerator, VideoGenerator
from lfdm.evaluation.protocol import evaluate_generator
from lfdm.evaluation.settings import EvaluationConfig
from lfdm.pipeline.pipeline import LatentFlowPipeline

FRAMES, SIZE = 4, 32


class Frozen:
    """Repeats the image."""

    name = "frozen"

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        assert labels is None or len(labels) == len(images)
        self.seeds += seeds
        return GeneratedVideos(np.stack(images)[:, None].repeat(FRAMES, axis=1), None)


class Perfect(Frozen):
    """Returns the real clip whose index is the seed."""

    name = "perfect"

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.cache = open_cache(root, [record for record in read_index(root) if record.split == "test"], SIZE, "pad")

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        super().__call__(images, labels, seeds)
        return GeneratedVideos(np.stack([self.cache.clip(seed % len(self.cache)) for seed in seeds]), None)


class Stopped(Frozen):
    """Fails after some batches."""

    name = "frozen"

    def __init__(self, num_batches: int) -> None:
        super().__init__()
        self.num_batches = num_batches

    def __call__(self, images: Sequence[np.ndarray], labels: Sequence[str] | None, seeds: Sequence[int]) -> GeneratedVideos:
        if self.num_batches == 0:
            raise KeyboardInterrupt
        self.num_batches -= 1
        return super().__call__(images, labels, seeds)


def evaluate(generator: VideoGenerator, data: Path, out: Path, config: EvaluationConfig, **description: Any) -> dict[str, Any]:
    return evaluate_generator(
        generator, data, out, config, image_size=SIZE, fit="pad", num_frames=FRAMES, fps=2, description=description
    )


def test_real_clips_are_perfect(data: Path, quick: EvaluationConfig, tmp_path: Path) -> None:
    results = evaluate(Perfect(data), data, tmp_path, quick)
    generation = results["generation"]
    assert results["stage1"] is None
    assert generation["pixel_motion_amount"]["value"] == 1
    assert generation["pixel_motion_amount"]["real_energy"] > 0
    assert generation["temporal_smoothness"]["value"] == 1
    assert generation["identity"]["value"] == pytest.approx(1)
    assert generation["action_accuracy"]["value"] == generation["action_accuracy"]["real_held_out"]
    assert generation["frame_0"]["lowest_psnr"] == 100
    for distance in (*generation["distances"].values(), *generation["frame_distances"].values()):
        frechet = distance["frechet"]
        assert frechet["value"] == pytest.approx(0, abs=1e-6 * frechet["floor"])
        assert frechet["value_at_floor"] == pytest.approx(frechet["floor"])
        assert len(distance["sha256"]) == 64
    assert set(generation["distances"]) == {"FVD[dolls-classifier]"}
    assert set(generation["frame_distances"]) == {"FID[dolls-frames]"}
    assert len(generation["distances"]["FVD[dolls-classifier]"]["frechet_by_subject"]["groups"]) == 2


@pytest.fixture(scope="module")
def frozen(data: Path, quick: EvaluationConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The evaluation of a generator whose videos stand still, and its folder."""
    out = tmp_path_factory.mktemp("frozen")
    return evaluate(Frozen(), data, out, quick, version=1), out


def test_frozen_videos_fail(frozen: tuple[dict[str, Any], Path]) -> None:
    results, out = frozen
    generation = results["generation"]
    assert generation["pixel_motion_amount"]["value"] == 0
    assert generation["pixel_diversity"]["value"] == 0
    assert generation["temporal_smoothness"]["value"] is None  # nothing moves: there is no spectrum
    assert generation["identity"]["value"] >= 1
    frechet = generation["distances"]["FVD[dolls-classifier]"]["frechet"]
    assert frechet["low"] > 0
    assert frechet["value_at_floor"] > frechet["floor"]
    assert generation["frame_0"]["lowest_psnr"] == 100
    assert "no flow" in results["left_out"]["generation.motion_amount"]
    assert "no flow" in results["left_out"]["generation.diversity"]
    page = (out / "report.html").read_text()
    assert "Evaluation of frozen" in page


def test_a_stopped_evaluation_goes_on_and_gives_the_same(
    frozen: tuple[dict[str, Any], Path], data: Path, quick: EvaluationConfig, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopped(1), data, tmp_path, quick, version=1)
    assert not (tmp_path / "results.json").exists()
    generator = Frozen()
    rest = evaluate(generator, data, tmp_path, quick, version=1)
    assert generator.seeds[:4] == list(range(8, 12))
    assert comparable(rest) == comparable(frozen[0])
    again = Frozen()
    assert evaluate(again, data, tmp_path, quick, version=1)["generation"] == rest["generation"]
    assert again.seeds == []


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results without dates and durations."""
    generation = {key: value for key, value in results["generation"].items() if key != "seconds_per_video"}
    return {**results, "generation": generation, "date": "", "seconds": 0, "num_processes": 0}


def test_other_settings_in_the_same_folder_are_refused(
    frozen: tuple[dict[str, Any], Path], data: Path, quick: EvaluationConfig
) -> None:
    _, out = frozen
    with pytest.raises(UserError, match=r"other settings \(settings.seed was 0, now 1\)"):
        evaluate(Frozen(), data, out, replace(quick, seed=1), version=1)
    with pytest.raises(UserError, match=r"model.version was 1, now 2"):
        evaluate(Frozen(), data, out, quick, version=2)


def test_few_clips_leave_frechet_distances_out_unless_allowed(
    frozen: tuple[dict[str, Any], Path], data: Path, quick: EvaluationConfig
) -> None:
    told, out = frozen
    generator = Frozen()
    results = evaluate(generator, data, out, replace(quick, allow_small=False), version=1)  # resumes with the same clips
    assert generator.seeds == []
    found = results["generation"]["distances"]["FVD[dolls-classifier]"]
    assert "frechet" not in found
    assert found["kernel"] == told["generation"]["distances"]["FVD[dolls-classifier]"]["kernel"]
    assert "at least 256 samples" in results["left_out"]["generation.distances.FVD[dolls-classifier].frechet"]


def test_videos_of_another_length_are_refused(data: Path, quick: EvaluationConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(8, 3, 32, 32, 3\) uint8; got \(8, 4, 32, 32, 3\)"):
        evaluate_generator(Frozen(), data, tmp_path, quick, image_size=SIZE, fit="pad", num_frames=3, fps=2, description={})


def test_pipeline_generator_makes_what_the_pipeline_makes(model: Path) -> None:
    pipe = LatentFlowPipeline.from_pretrained(model)
    generator = PipelineGenerator(pipe, num_inference_steps=2, sampler="heun")
    images = list(np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8))
    videos = generator(images, ["wave", "kick"], [5, 6])
    assert generator.settings == {"scheduler": "heun", "num_inference_steps": 2, "guidance_scale": 1.0}
    alone = pipe(images[1], "kick", num_inference_steps=2, generator=torch.Generator().manual_seed(6), output_type="uint8")
    assert np.abs(videos.frames[1].astype(int) - np.asarray(alone.frames)[0]).max() <= 1
    assert videos.motion is not None
    torch.testing.assert_close(videos.motion.flow[1], alone.motion.flow[0], atol=1e-4, rtol=1e-4)
