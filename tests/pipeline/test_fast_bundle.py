"""The bundled model that needs four predictions."""

import numpy as np
import pytest

from lfdm.errors import UserError
from lfdm.folders.sources import bundled_images
from lfdm.pipeline.pipeline import LatentFlowPipeline


@pytest.fixture(scope="module")
def fast() -> LatentFlowPipeline:
    return LatentFlowPipeline.from_pretrained("puppets64-fast")


def test_one_pass_a_step_moves_the_puppet_about_as_far_as_the_teacher(fast: LatentFlowPipeline) -> None:
    image = bundled_images("puppets64-fast")[0]
    passes: list[int] = []
    hook = fast.unet.register_forward_hook(lambda _, inputs, __: passes.append(inputs[2].shape[0]))
    made = fast(image, "wave", generator=0, output_type="uint8").frames
    hook.remove()
    assert passes == [1, 1, 1, 1]
    taught = LatentFlowPipeline.from_pretrained("puppets64")(image, "wave", generator=0, output_type="uint8").frames
    amounts = [np.abs(np.diff(np.asarray(frames, dtype=int)[0], axis=0)).mean() for frames in (made, taught)]
    assert 0.7 < amounts[0] / amounts[1] < 1.3


def test_scales_that_it_was_not_trained_for_are_refused(fast: LatentFlowPipeline) -> None:
    with pytest.raises(UserError, match="guidance_scale"):
        fast(bundled_images("puppets64-fast")[0], "wave", guidance_scale=9.0)
