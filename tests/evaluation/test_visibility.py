"""What the first frame shows, by cycle consistency."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lfdm.autoencoder.autoencoder import LatentFlowAutoencoder
from lfdm.config.presets import Preset
from lfdm.config.serialization import to_json
from lfdm.data.index import ClipRecord, read_index
from lfdm.evaluation.visibility import consistent_cells, cycle_visibility, visible_by_label
from lfdm.motion.motion import Motion
from lfdm.pipeline.transfer import Stage1Pipeline


def test_a_cell_is_visible_where_the_point_that_it_shows_returns_to_it() -> None:
    flow = torch.zeros(1, 2, 2, 8, 8)
    flow[:, 0, 1] = 0.5  # frame 1 shows frame 0 a quarter of the image further right
    motion = Motion(flow, torch.ones(1, 1, 2, 8, 8), False)
    displacement = -flow[0].transpose(0, 1).contiguous()
    moving, visible = consistent_cells(motion, displacement, (64, 64))
    assert not moving[0].any()
    assert moving[1].all()
    assert visible[0].all()
    assert visible[1, :, :6].all()
    assert not visible[1, :, 6:].any()  # read beyond the first frame
    _, visible = consistent_cells(motion, torch.zeros_like(displacement), (64, 64))
    assert not visible[1].any()


@pytest.mark.parametrize("preset_name", ["tiny_preset", "tiny_paper_preset"])
def test_every_predictor_estimates_the_share(preset_name: str, request: pytest.FixtureRequest) -> None:
    preset: Preset = request.getfixturevalue(preset_name)
    autoencoder = LatentFlowAutoencoder(**to_json(preset.autoencoder)).eval()
    moving, visible = cycle_visibility(autoencoder, torch.rand(1, 3, 4, 32, 32))
    assert moving.shape == visible.shape
    assert moving.dtype == visible.dtype == torch.bool


@pytest.mark.slow
def test_the_bundled_model_sees_most_of_the_puppets_in_their_first_frame(
    puppets_dir: Path, puppet_records: list[ClipRecord]
) -> None:
    stage1 = Stage1Pipeline.from_pretrained("puppets64")
    shares = visible_by_label(stage1, puppets_dir, puppet_records)
    assert set(shares) == {record.label for record in read_index(puppets_dir)}
    assert min(shares.values()) > 0.5
    half = [replace(record, label="jump") for record in puppet_records]
    assert set(visible_by_label(stage1, puppets_dir, half)) == {"jump"}
