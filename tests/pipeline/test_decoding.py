"""Long videos: decoded in chunks, they have the same frames as all at once, in memory that grows only by the result."""

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lfdm import LatentFlowPipeline, Motion
from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import FLOW64, Preset
from lfdm.config.serialization import to_json
from lfdm.config.video import Size
from lfdm.pipeline import decoding as pipeline_decoding
from lfdm.pipeline.decoding import frames_per_chunk
from lfdm.pipeline.result import OutputType

SIZE = 16
LENGTHS = (16, 40, 160, 640)
CHUNK_FRAMES = 8
RESULT_BYTES = {"uint8": 6 * SIZE**2, "np": 24 * SIZE**2, "pt": 24 * SIZE**2}
"""Of `frames` and `warped`, per frame, as `decode_video` states."""


class TensorMemory(TorchDispatchMode):
    """Bytes of all tensor storages that operations made and that are alive; exact, whatever the allocator keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.add(value.untyped_storage())  # made before, or counted already
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (storage := value.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.current += storage.nbytes()
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._release, storage.nbytes())
        return result

    def _release(self, size: int) -> None:
        self.current -= size


@pytest.fixture(scope="module")
def module_pipe(tiny_preset: Preset) -> LatentFlowPipeline:
    return LatentFlowPipeline.from_preset(replace(tiny_preset, image_size=SIZE), ("wave",))


@pytest.fixture
def pipe(module_pipe: LatentFlowPipeline, monkeypatch: pytest.MonkeyPatch) -> LatentFlowPipeline:
    """Chunks of `CHUNK_FRAMES` frames."""
    maps = pipeline_decoding.CHUNK_MAPS * 4 * module_pipe.autoencoder.config["channels"] * SIZE**2
    monkeypatch.setattr(pipeline_decoding, "CHUNK_BYTES", CHUNK_FRAMES * maps)
    assert frames_per_chunk(module_pipe.autoencoder, Size(SIZE, SIZE), 1) == CHUNK_FRAMES
    return module_pipe


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def random_motion(length: int, batch: int = 1) -> Motion:
    generator = torch.Generator().manual_seed(0)
    shape = length, SIZE // 2, SIZE // 2
    flow = 0.3 * torch.randn(batch, 2, *shape, generator=generator)
    return Motion(flow, torch.rand(batch, 1, *shape, generator=generator), corners=False)


@pytest.mark.parametrize("output_type", ["uint8", "np", "pil", "pt"])
def test_chunked_decoding_equals_decoding_at_once(
    pipe: LatentFlowPipeline, image: np.ndarray, output_type: OutputType, monkeypatch: pytest.MonkeyPatch
) -> None:
    motion = random_motion(21, batch=2)
    parts = pipe.animate(image, motion, output_type=output_type)
    monkeypatch.setattr(pipeline_decoding, "CHUNK_BYTES", 2**40)
    whole = pipe.animate(image, motion, output_type=output_type)
    for chunked, expected in ((parts.frames, whole.frames), (parts.warped, whole.warped)):
        assert type(chunked) is type(expected)
        assert [len(sample) for sample in chunked] == [len(sample) for sample in expected]
        difference = np.asarray(chunked, np.float32) - np.asarray(expected, np.float32)
        # summing in another order may turn a value over a rounding edge
        assert np.abs(difference).max() <= (1e-5 if output_type in ("np", "pt") else 1)
        assert np.abs(difference).mean() < 1e-3


def test_a_chunk_has_at_least_one_frame_of_each_sample(module_pipe: LatentFlowPipeline) -> None:
    assert frames_per_chunk(module_pipe.autoencoder, Size(SIZE, SIZE), 10**9) == 1


def test_a_chunk_stays_within_its_memory() -> None:
    """At the widths of a preset; a model of few channels takes more of its maps."""
    autoencoder = LatentFlowAutoencoder(**to_json(FLOW64.autoencoder)).eval()
    with torch.no_grad(), TensorMemory() as memory:
        features = autoencoder.encode(torch.rand(1, 3, 64, 64))
        autoencoder.decode(features, Motion.identity(1, 2, (32, 32), corners=False))
    maps = memory.peak / (4 * 2 * autoencoder.config["channels"] * 64**2)
    assert 2 < maps < pipeline_decoding.CHUNK_MAPS


@pytest.mark.parametrize(
    ("output_type", "lengths"), [("uint8", LENGTHS), ("np", LENGTHS[:2]), ("pil", LENGTHS[:2]), ("pt", LENGTHS[:3])]
)
def test_memory_grows_only_by_the_result(
    pipe: LatentFlowPipeline, image: np.ndarray, output_type: OutputType, lengths: tuple[int, ...]
) -> None:
    """At 16, 40, 160 and 640 frames: tensors of one chunk, and those of the result where it is made of tensors."""
    peaks = []
    for length in lengths:
        motion = random_motion(length)
        with TensorMemory() as memory:
            out = pipe.animate(image, motion, output_type=output_type)
        peaks.append(memory.peak)
        if isinstance(out.frames, np.ndarray) and isinstance(out.warped, np.ndarray):
            assert out.frames.nbytes + out.warped.nbytes == length * RESULT_BYTES[output_type]
    per_frame = RESULT_BYTES["pt"] if output_type == "pt" else 0
    assert [peak - peaks[0] for peak in peaks] == [per_frame * (length - LENGTHS[0]) for length in lengths]


def test_transfer_holds_a_chunk_of_the_driving_clip_and_its_motion(pipe: LatentFlowPipeline, image: np.ndarray) -> None:
    """Per frame: its motion, 12 bytes a cell, twice while the chunks are joined."""
    rng = np.random.default_rng(1)
    peaks = []
    for length in LENGTHS[:3]:
        driving = (rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(length))
        with TensorMemory() as memory:
            pipe.transfer(image, driving, output_type="uint8")
        peaks.append(memory.peak)
    most = 2 * 12 * (SIZE // 2) ** 2
    for length, peak in zip(LENGTHS, peaks, strict=False):
        assert peak - peaks[0] <= most * (length - LENGTHS[0])
