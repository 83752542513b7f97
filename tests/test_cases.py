"""The 26 kinds of faults that public reports of real files and habits led to: which tests cover them, and the reported files.

The reported files are not part of this repository; where they are not next to it, the second part is skipped.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lfdm.data.images import read_image
from lfdm.data.index import read_index
from lfdm.data.video import read_video, video_info
from lfdm.errors import UserError
from lfdm.folders.model_folder import read_tensors

TESTS = Path(__file__).parent
PLACES = (TESTS.parents[1] / "shared" / "cases", TESTS.parents[2] / "shared" / "cases")
CASES = next((place for place in PLACES if place.is_dir()), PLACES[0])

COVERED_BY: dict[int, tuple[str, ...]] = {
    1: (
        "cli/test_videos.py::test_no_output_replaces_an_input",
        "cli/test_videos.py::test_an_existing_file_is_replaced_only_with_overwrite",
        "cli/test_videos.py::test_a_driving_video_with_the_name_of_the_output_stays",
        "folders/test_files.py::test_a_target_that_would_replace_an_input_is_found",
    ),
    2: ("data/test_containers.py::test_display_matrix_turns_and_mirrors",),
    3: ("data/test_containers.py::test_pixels_become_square", "data/test_containers.py::test_dv_has_the_pixels_of_television"),
    4: ("data/test_containers.py::test_rate_of_a_browser_recording_is_that_of_its_frame_times",),
    5: (
        "data/test_containers.py::test_last_frame_without_a_duration_lasts_to_the_end",
        "data/test_containers.py::test_a_screen_that_stands_still_at_the_end_is_a_whole_clip",
        "data/test_containers.py::test_an_edit_list_may_last_longer_than_the_frames_after_its_cut",
        "data/test_video.py::test_a_trimmed_clip_gives_what_its_edit_list_leaves",
    ),
    6: (
        "data/test_gif.py::test_our_own_gifs_keep_their_frames_and_rate",
        "data/test_gif.py::test_frames_that_last_differently_become_a_constant_rate",
    ),
    7: (
        "data/test_gif.py::test_clearing_leaves_a_transparent_rectangle_whatever_the_background_colour",
        "data/test_gif.py::test_transparent_pixels_keep_what_is_below_and_disposal_does_not_carry_over",
    ),
    8: (
        "data/test_containers.py::test_transparent_videos_are_over_white",
        "data/test_containers.py::test_premultiplied_alpha_of_quicktime_is_composed_as_stored",
    ),
    9: (
        "pipeline/test_pipeline.py::test_output_forms_agree",
        "pipeline/test_diffusers_habits.py::test_frames_have_the_right_colours_in_export_to_video",
    ),
    10: ("cli/test_console.py::test_names_that_the_encoding_lacks_are_escaped",),
    11: (
        "data/corpora/test_layouts.py::test_split_folders_give_the_split_and_not_the_label",
        "data/corpora/test_layouts.py::test_split_folders_without_labels_are_refused_unless_they_are_labels",
        "data/corpora/test_layouts.py::test_a_forced_layout_names_clips_of_another_one",
    ),
    12: (
        "data/corpora/test_splits.py::test_every_label_is_in_both_splits_where_it_can_be",
        "data/corpora/test_layouts.py::test_labels_that_cannot_be_in_both_splits_are_named",
        "data/corpora/test_layouts.py::test_labels_of_the_test_folder_only_are_named",
    ),
    13: (
        "data/corpora/test_layouts.py::test_labels_are_compared_composed_and_trimmed",
        "condition/test_encoder.py::test_labels_are_compared_composed_and_trimmed_and_capitals_get_a_hint",
        "cli/test_models.py::test_a_label_is_found_in_every_form_of_its_text_after_training",
    ),
    14: ("cli/test_data_sets.py::test_a_tilde_is_the_home_folder_in_every_path",),
    15: (
        "data/test_images.py::test_whatever_a_decoder_raises_is_a_broken_file",
        "data/test_images.py::test_a_damaged_picture_in_a_folder_of_frames_costs_its_clip_only",
        "data/corpora/test_folder.py::test_a_damaged_picture_ends_no_conversion",
    ),
    16: (
        "data/test_images.py::test_profiles_are_converted_to_srgb",
        "data/test_images.py::test_a_palette_with_a_profile_is_converted",
        "data/test_images.py::test_grey_profiles_are_converted",
    ),
    17: (
        "data/test_containers.py::test_files_are_read_by_content_under_every_name",
        "data/test_containers.py::test_outputs_may_be_named_in_capitals",
    ),
    18: (
        "data/test_containers.py::test_an_unusual_rate_is_no_reason_to_refuse",
        "data/corpora/test_folder.py::test_an_unusual_frame_rate_is_recorded_with_a_note",
    ),
    19: (
        "data/test_images.py::test_messages_say_what_a_file_really_is",
        "data/test_containers.py::test_what_is_no_clip_is_named",
        "folders/test_file_kinds.py::test_weights_that_were_not_downloaded_are_named",
        "folders/test_model_folder.py::test_weights_that_are_a_git_lfs_pointer_name_the_command",
        "folders/test_run_folder.py::test_a_stage_1_run_is_named_with_what_to_do",
        "data/test_tables.py::test_delimiter_case_spaces_and_marks_do_not_matter",
    ),
    20: ("web/test_client.py::test_refused_requests_give_the_client_a_message",),
    21: ("pipeline/test_threads.py::test_calls_from_threads_equal_single_calls",),
    22: (
        "pipeline/test_diffusers_habits.py::test_a_pipeline_of_the_components_has_the_same_settings",
        "pipeline/test_diffusers_habits.py::test_arguments_of_other_pipelines_are_refused_with_what_to_use",
        "pipeline/test_diffusers_habits.py::test_attributes_of_other_pipelines_are_refused_with_what_to_use",
        "pipeline/test_diffusers_habits.py::test_moving_and_converting_a_pipeline_warns_of_nothing",
        "pipeline/test_diffusers_habits.py::test_options_of_loading",
        "pipeline/test_diffusers_bridge.py::test_diffusers_loads_our_folders",
    ),
    23: (
        "diffusion/test_schedulers.py::test_supported_schedulers_of_diffusers_find_x0",
        "diffusion/test_schedulers.py::test_schedulers_that_would_give_wrong_samples_are_refused",
    ),
    24: ("data/test_video.py::test_a_folder_of_frames_of_two_sizes_is_one_answer",),
    25: (
        "data/test_gif.py::test_later_frames_are_clipped_to_the_screen",
        "data/test_gif.py::test_the_screen_grows_to_hold_the_first_frame",
    ),
    26: ("cli/test_console.py::test_a_closed_pipe_ends_quietly", "cli/test_console.py::test_streams_may_be_closed_or_full"),
}
"""Tests with inputs of their own, by the number of the case."""


needs_files = pytest.mark.skipif(not CASES.is_dir(), reason="needs the reported files in shared/cases, next to the repository")


@pytest.mark.parametrize("number", range(1, 27))
def test_every_case_is_covered_by_tests_that_exist(number: int) -> None:
    for test in COVERED_BY[number]:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), test


def check_mirrored() -> None:
    mirrored, plain = (read_video(CASES / "02-mirrored-video" / name) for name in ("hflip.mp4", "plain.mp4"))
    assert np.array_equal(mirrored, plain[:, :, ::-1])


def check_background_of_gif() -> None:
    frames = read_video(CASES / "07-gif-background" / "dispose_bgnd.gif")
    assert frames[2, 25, 20].tolist() == [255, 255, 255]  # a cleared box shows what lies behind the clip
    assert frames[0, 0, 0].tolist() == frames[4, 0, 0].tolist() == [135, 206, 235]


def check_alpha() -> None:
    for name in ("alpha.webm", "alpha_png.mov"):
        path = CASES / "08-alpha-in-video" / name
        assert read_video(path)[0, 0, 0].tolist() == [255, 255, 255]
        assert read_video(path, keep_alpha=True)[0, 0, 0, 3] == 0


def check_damaged_pictures() -> None:
    for name in ("bad.avif", "2.png"):
        with pytest.raises(UserError, match=name):
            read_image(CASES / "15-traceback-on-damaged-picture" / name)


def check_profile() -> None:
    colours = read_image(CASES / "16-icc-profile" / "p3.png")[8, 8::16].astype(int)
    assert np.abs(colours - [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 160, 120]]).max() <= 3


@needs_files
def test_reported_files_get_messages_that_help(tmp_path: Path) -> None:
    """Case 19."""
    folder = CASES / "19-messages"
    assert len(read_video(folder / "ts.mp4")) == 25
    with pytest.raises(UserError, match="git lfs pull"):
        read_tensors(folder / "lfs-pointer.safetensors")
    with pytest.raises(UserError, match=r"lfs-pointer\.safetensors: not a clip but a Git LFS pointer"):
        read_video(folder / "lfs-pointer.safetensors")
    for name in ("clips-semicolon.csv", "clips-spaces.csv"):
        (tmp_path / "clips.csv").write_bytes((folder / name).read_bytes())
        assert {record.label for record in read_index(tmp_path)} == {"jump", "rare", "wave"}


def check_screen_of_gif() -> None:
    assert read_video(CASES / "25-gif-beyond-its-screen" / "test_extents.gif").shape == (2, 100, 100, 3)


@needs_files
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check_mirrored, id="case-02"),
        pytest.param(check_background_of_gif, id="case-07"),
        pytest.param(check_alpha, id="case-08"),
        pytest.param(check_damaged_pictures, id="case-15"),
        pytest.param(check_profile, id="case-16"),
        pytest.param(check_screen_of_gif, id="case-25"),
    ],
)
def test_reported_files_are_read_as_they_are_shown(check: Callable[[], None]) -> None:
    check()


@needs_files
@pytest.mark.parametrize(
    ("name", "frames", "fps", "size"),
    [
        ("02-mirrored-video/hflip.mp4", 25, 25, (96, 64)),
        ("03-non-square-pixels/sar.mp4", 25, 25, (140, 64)),
        ("04-webm-rate/chrome_webcam.webm", 20, 16.27, (96, 64)),
        ("05-whole-clips-called-truncated/chrome_5.webm", 5, 5, (96, 64)),
        ("06-gif-34-to-48-fps/f40.gif", 24, 40, (32, 32)),
        ("07-gif-background/dispose_bgnd.gif", 5, 1, (100, 100)),
        ("08-alpha-in-video/alpha.webm", 10, 10, (96, 64)),
        ("17-endings/plain.m4v", 25, 25, (96, 64)),
        ("18-rates/fps5000.mp4", 50, 1000, (96, 64)),
        ("18-rates/timelapse.mp4", 5, 0.05, (96, 64)),
    ],
)
def test_reported_files_have_the_right_length_rate_and_size(name: str, frames: int, fps: float, size: tuple[int, int]) -> None:
    info = video_info(CASES / name)
    assert (info.frames, info.width, info.height) == (frames, *size)
    assert info.fps == pytest.approx(fps, rel=0.001)
    assert read_video(CASES / name).shape == (frames, size[1], size[0], 3)
