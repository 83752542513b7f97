from dataclasses import replace

import pytest

from lfdm.config.presets import FLOW64, FLOW256, MUG128
from lfdm.config.sizes import OWN_PRESETS, SizeStage, parse_stages, staged_presets, suitable_preset
from lfdm.errors import UserError


def test_every_own_preset_diffuses_the_same_grid() -> None:
    assert {min(preset.size) // 2**preset.autoencoder.num_downs for preset in OWN_PRESETS} == {32}
    assert {preset.unet for preset in OWN_PRESETS} == {FLOW64.unet}


@pytest.mark.parametrize(
    ("sides", "size"),
    [([64], 64), ([80, 80], 64), ([96], 128), ([120, 720, 1080], 512), ([240, 240, 64], 256), ([4000], 512), ([16], 64)],
)
def test_the_preset_nearest_to_the_median_short_side_suits(sides: list[int], size: int) -> None:
    preset, reason = suitable_preset(sides)
    assert preset.image_size == size
    assert str(size) in reason


def test_stages_end_at_the_preset_and_keep_its_grid() -> None:
    stages = parse_stages(["64:30", "128:20", "256:10"])
    presets = staged_presets(FLOW256, stages)
    assert [(preset.image_size, preset.autoencoder.num_downs) for preset in presets] == [(64, 1), (128, 2), (256, 3)]
    assert [preset.autoencoder_training.optimization.num_steps for preset in presets] == [30, 20, 10]
    assert {preset.autoencoder.upsampling for preset in presets} == {"convex"}
    assert parse_stages([]) == ()


@pytest.mark.parametrize("value", ["64", "64:", ":5", "64:0", "0:5", "-64:5", "a:b", "64:1.5", "64:5:6"])
def test_other_forms_of_stages_are_refused(value: str) -> None:
    with pytest.raises(UserError, match="sizes must be SIZE:STEPS"):
        parse_stages([value])


@pytest.mark.parametrize(("values", "allowed"), [(["128:5", "64:5"], "rising"), (["64:5", "64:5"], "rising")])
def test_sizes_must_rise(values: list[str], allowed: str) -> None:
    with pytest.raises(UserError, match=f"sizes.*{allowed}"):
        parse_stages(values)


@pytest.mark.parametrize("stages", [[(64, 5), (128, 5)], [(96, 5), (256, 5)], [(32, 5), (256, 5)]])
def test_sizes_that_do_not_fit_the_preset_are_refused(stages: list[tuple[int, int]]) -> None:
    with pytest.raises(UserError, match="sizes must be"):
        staged_presets(FLOW256, [SizeStage(size=size, num_steps=steps) for size, steps in stages])


def test_stages_of_rectangles_keep_their_shape() -> None:
    presets = staged_presets(replace(FLOW256, image_size=(256, 384)), parse_stages(["64:5", "256:5"]))
    assert [preset.image_size for preset in presets] == [(64, 96), (256, 384)]


def test_the_paper_recipe_has_one_size() -> None:
    with pytest.raises(UserError):
        staged_presets(MUG128, parse_stages(["64:5", "128:5"]))
