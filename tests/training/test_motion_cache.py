"""Cached stage-1 motion: equal to direct estimates, identified by what determines it."""

import copy
import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.data.augmentation import mirror_motion
from lfdm.data.cache import ClipCache, open_cache
from lfdm.data.index import read_index
from lfdm.data.truth import load_truth, truth_path
from lfdm.errors import UserError
from lfdm.motion.motion import Motion
from lfdm.motion.warp import warp
from lfdm.training import motion_cache
from lfdm.training.exact_motion import with_exact_figure
from lfdm.training.motion_cache import CachedMotions, MotionCache, open_motion_cache


def test_cached_motion_is_the_motion_estimated_in_evaluation_mode(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(motion_cache, "CHUNK_FRAMES", 4)  # clips of 6 frames in two pieces
    done: list[tuple[str, int, int]] = []
    cache = open_motion_cache(autoencoder, clips, progress=lambda *counts: done.append(counts))
    assert autoencoder.training
    assert done == [("estimating motion", n, 3) for n in (1, 2, 3)]
    autoencoder.eval()
    for index, motion in enumerate(CachedMotions(cache)):
        video = torch.from_numpy(np.array(clips.clip(index))).permute(3, 0, 1, 2)[None].float() / 255
        with torch.no_grad():
            direct = autoencoder.estimate_motion(video[:, :, 0], video)
        assert motion.flow.abs().max() > 0.01
        assert motion.corners is False
        torch.testing.assert_close(motion.flow, direct.flow, atol=1e-3, rtol=1e-3)  # stored as float16
        torch.testing.assert_close(motion.occlusion, direct.occlusion, atol=1e-3, rtol=1e-3)
        np.testing.assert_array_equal(cache.clip(index)[:, :2], motion.flow[0].transpose(0, 1).numpy())
    autoencoder.train()


def test_exact_motion_is_that_of_truth_files_where_the_figure_is(
    puppets_dir: Path, autoencoder: LatentFlowAutoencoder, tmp_path: Path
) -> None:
    records = [record for record in read_index(puppets_dir) if truth_path(puppets_dir / record.path).is_file()][:1]
    clips = open_cache(puppets_dir, records, 32, "pad", tmp_path)
    truth = load_truth(truth_path(puppets_dir / records[0].path))
    estimated, exact = (open_motion_cache(autoencoder, clips, exact=exact).clip(0).astype(np.float32) for exact in (False, True))
    h, w = exact.shape[-2:]
    step = truth.flow.shape[1] // h
    solid = (truth.figure & truth.visible).reshape(len(exact), h, step, w, step).all((2, 4))
    empty = ~truth.figure.reshape(len(exact), h, step, w, step).any((2, 4))
    pixels = truth.flow.reshape(len(exact), h, step, w, step, 2)
    found = np.moveaxis(exact[:, :2], 1, -1) * truth.flow.shape[1] / 2
    distance = np.linalg.norm(found[:, :, None, :, None] - pixels, axis=-1).min((2, 4))
    assert distance[solid].max() < 0.02  # float16
    assert exact[:, 2][solid].min() >= 0.59
    np.testing.assert_array_equal(np.moveaxis(exact, 1, -1)[empty], np.moveaxis(estimated, 1, -1)[empty])
    with pytest.raises(UserError, match="truth must have"):
        with_exact_figure(exact[:2], truth)


def test_motion_is_estimated_again_only_if_something_that_determines_it_changes(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(autoencoder)

    def open_again() -> tuple[Path, list[int]]:
        done: list[int] = []
        return open_motion_cache(model, clips, progress=lambda _, count, __: done.append(count)).folder, done

    first, work = open_again()
    assert work == [1, 2, 3]
    assert open_again() == (first, [])
    with torch.no_grad():
        model.final.weight[0] += 1e-3  # decodes, does not estimate motion
    assert open_again() == (first, [])
    with torch.no_grad():
        next(model.motion_predictor.parameters()).view(-1)[0] += 1e-3
    second, work = open_again()
    assert work == [1, 2, 3]
    monkeypatch.setattr(motion_cache, "MOTION_VERSION", motion_cache.MOTION_VERSION + 1)
    third, work = open_again()
    assert work == [1, 2, 3]
    assert len({first, second, third}) == 3


def test_a_stopped_estimation_leaves_nothing(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    def stop(_: str, count: int, __: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    before = sorted(clips.folder.parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        open_motion_cache(autoencoder, clips, progress=stop)
    assert sorted(clips.folder.parent.iterdir()) == before
    assert autoencoder.training


def test_one_of_two_estimates_and_the_other_waits(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    opened: list[MotionCache] = []
    second = threading.Thread(target=lambda: opened.append(open_motion_cache(autoencoder, clips, progress=never)))

    def begin_second(_: str, count: int, __: int) -> None:
        if count == 1:
            second.start()

    def never(*_: object) -> None:
        raise AssertionError("estimated twice")

    cache = open_motion_cache(autoencoder, clips, progress=begin_second)
    second.join()
    np.testing.assert_array_equal(cache.clip(1), opened[0].clip(1))
    assert not list(clips.folder.parent.glob(".*"))


def test_motion_that_changed_on_the_disk_is_estimated_anew(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_motion_cache(autoencoder, clips)
    before = np.array(cache.clip(2))
    path = cache.folder / "motion.f16"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(open_motion_cache(autoencoder, clips).clip(2), before)
    assert [message.count(clips.records[2].path) for message in caplog.messages] == [1]


def test_motion_that_is_not_finite_is_never_stored(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    broken = copy.deepcopy(autoencoder).requires_grad_(False)
    for parameter in broken.motion_predictor.parameters():
        parameter.fill_(float("nan"))
    with pytest.raises(UserError, match=f"{clips.records[0].path}: .*not finite"):
        open_motion_cache(broken, clips)
    assert [path.name for path in clips.folder.parent.iterdir()] == [clips.folder.name]


def test_loader_processes_get_a_cache_as_a_path(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    cache = open_motion_cache(autoencoder, clips)
    sent = pickle.dumps(cache)
    assert len(sent) < 2000 < cache.clip(0).nbytes
    np.testing.assert_array_equal(pickle.loads(sent).clip(2), cache.clip(2))


def test_mirrored_motion_moves_the_mirrored_image() -> None:
    """For a flow made by hand: mirror(warp(image)) = warp(mirror(image)) under the mirrored motion."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 16, generator=generator)
    motion = torch.rand(3, 2, 16, 16, generator=generator) * 0.5
    mirrored = torch.from_numpy(mirror_motion(motion.numpy()))

    def moved(picture: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        grid = Motion(values[None, :2], values[None, 2:], corners=False).grid()
        return warp(picture, grid, padding_mode="border")

    torch.testing.assert_close(moved(image.flip(-1), mirrored), moved(image, motion).flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored[2], motion[2].flip(-1))
    np.testing.assert_array_equal(mirror_motion(mirrored.numpy()), motion.numpy())


def test_statistics_can_include_the_mirrored_motion(autoencoder: LatentFlowAutoencoder, clips: ClipCache) -> None:
    cache = open_motion_cache(autoencoder, clips)
    plain, both = list(CachedMotions(cache)), list(CachedMotions(cache, mirrored=True))
    assert len(both) == 2 * len(plain)
    for a, b in zip(plain, both[::2], strict=True):
        assert torch.equal(a.flow, b.flow)
    assert sum(float(motion.flow[:, 0].double().sum()) for motion in both) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("shape", ["[3, 4611686018427387904, 1]", "[3, 3, 3]", "[3, -1, -1]", "null", '"abc"', "[1, 2]"])
def test_a_cache_of_another_size_than_it_says_is_made_anew(
    autoencoder: LatentFlowAutoencoder, clips: ClipCache, shape: str
) -> None:
    cache = open_motion_cache(autoencoder, clips)
    motion = np.array(cache.clip(0))
    stored = json.loads((cache.folder / "shape.json").read_text())
    (cache.folder / "shape.json").write_text(json.dumps(stored | {"shape": json.loads(shape)}))
    np.testing.assert_array_equal(open_motion_cache(autoencoder, clips).clip(0), motion)
