"""`python -m benchmarks.codecs`: exact motion on the grid, and its tables."""

import torch

from benchmarks.codecs import GRID, RESULTS, TRAJECTORY_TITLES, codec_row, flow_error, make_example, reduce, render_table
from lfdm.folders.model_folder import read_json
from lfdm.motion.codec import FrameCodec
from lfdm.pipeline.pipeline import LatentFlowPipeline


@torch.no_grad()
def test_a_codec_of_frames_keeps_exact_and_estimated_motion() -> None:
    autoencoder = LatentFlowPipeline.from_pretrained("puppets64").autoencoder
    example = make_example(autoencoder, 1, "wave")
    assert reduce(example.exact).flow.shape == (1, 2, 16, *GRID)
    row = codec_row(FrameCodec(), [example], autoencoder)
    errors, baseline = flow_error(example.estimated, example.exact)[0][:2]
    assert abs(row["estimated"] - float(errors / baseline)) < 1e-6
    assert row["exact"] < 0.15 < row["estimated"] < 0.5
    assert row["numbers"] == 3 * 16 * 32 * 32


def test_the_tables_have_all_rows() -> None:
    text = render_table(read_json(RESULTS))
    assert all(title in text for title in TRAJECTORY_TITLES.values())
    assert all(f"| {codec}" in text for codec in ("frames", "learned, 64", "trajectories, 8"))
