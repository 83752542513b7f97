"""Commands that make videos."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
import torch
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

from lfdm.config.presets import FLOW64, Preset
from lfdm.config.serialization import to_json
from lfdm.data.sound import has_sound
from lfdm.data.sprite_sheets import read_sheet
from lfdm.data.video import read_video, video_info, write_video
from lfdm.folders import sources
from lfdm.motion.motion import Motion
from lfdm.pipeline.outputs import OUT_ENDINGS, region_maps
from lfdm.pipeline.pipeline import LatentFlowPipeline
from tests.command_line import Lfdm


def test_generate_has_the_options_of_the_python_call(lfdm: Lfdm) -> None:
    _, out, _ = lfdm("generate", "--help")
    words = (
        "model out num-frames num-inference-steps guidance-scale num-videos seed panel unconditional fps device dtype fit scale "
        "motion-strength motion-mask negative-condition loop motion reuse-motion"
    )
    assert all(f"--{word}" in out for word in words.split())
    assert "usage: lfdm generate [-h] [OPTIONS] IMAGE [CONDITION]" in out


@pytest.mark.parametrize("ending", [*OUT_ENDINGS, ".MP4", ".Gif"])
def test_generate_writes_the_format_of_the_ending(lfdm: Lfdm, model: Path, image: Path, ending: str) -> None:
    out = Path("new") / "folder" / f"wave{ending}"
    options = ["--num-inference-steps", 1, "--num-frames", 5, "--fps", 10]
    code, printed, _ = lfdm("generate", image, "wave", "--model", model, "--out", out, *options)
    assert code == 0
    assert printed == f"{out}\n"
    info = video_info(out)
    assert (info.frames, info.width, info.height) == (5, 32, 32)
    assert info.fps == pytest.approx(10)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_alpha_of_the_picture_is_kept_or_a_line_says_that_it_is_not(lfdm: Lfdm, model: Path, image: Path) -> None:
    rgba = Image.open(image).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tri(32, dtype=np.uint8) * 255))
    rgba.save("sprite.png")
    options = ["--model", model, "--num-inference-steps", 1]
    for out in ("wave.webm", "wave.webp", "wave"):
        code, printed, errors = lfdm("generate", "sprite.png", "wave", *options, "--out", out, "--panel", "--overwrite")
        assert (code, printed.splitlines()[0], errors) == (0, out, "")
        alpha = read_video(out, keep_alpha=True)[0, ..., 3]
        assert np.abs(alpha.astype(int) - np.tri(32) * 255).mean() < 2
    code, printed, errors = lfdm("transfer", "sprite.png", "wave", *options[:2], "--out", "moved.mp4")
    assert (code, printed) == (0, "moved.mp4\n")
    assert "moved.mp4: mp4 stores no alpha" in errors.splitlines()[-1]
    assert (read_video("moved.mp4")[0, 2, 20:] > 240).all()  # over white


def test_pixel_art_keeps_size_and_colours(lfdm: Lfdm, model: Path) -> None:
    sprite = np.zeros((20, 14, 4), np.uint8)
    sprite[4:16, 3:9], sprite[8:12, 5:7] = (200, 30, 40, 255), (20, 90, 200, 255)
    Image.fromarray(sprite).save("sprite.png")
    options = ["--model", model, "--num-inference-steps", 1, "--pixel-art", "--panel"]
    code, _, err = lfdm("generate", "sprite.png", "wave", *options, "--out", "wave")
    assert code == 0, err
    frames = read_video("wave", keep_alpha=True)
    assert frames.shape == (4, 20, 14, 4)
    assert len(np.unique(frames[frames[..., 3] > 0], axis=0)) == 2


def test_a_sprite_sheet_is_data_and_a_picture(lfdm: Lfdm, model: Path, image: Path) -> None:
    common = ["generate", image, "wave", "--model", model, "--num-inference-steps", 1]
    options = [*common, "--num-videos", 2, "--scale", 2]
    code, printed, _ = lfdm(*options, "--out", "sheets/wave.json", "--sheet-format", "array")
    assert (code, printed) == (0, "sheets/wave-0.json\nsheets/wave-1.json\n")
    (clip,) = read_sheet("sheets/wave-1.json")
    assert lfdm(*options, "--out", "frames/wave")[0] == 0
    assert np.array_equal(clip.frames[..., :3], read_video("frames/wave-1"))
    (Path("taken") / "wave.png").parent.mkdir()
    shutil.copy(image, "taken/wave.png")  # the picture of the sheet would replace it
    code, _, errors = lfdm(*common, "--out", "taken/wave.json")
    assert (code, "taken/wave.png exists" in errors) == (2, True)
    code, _, errors = lfdm(*common, "--out", "wave.mp4", "--sheet-format", "array")
    assert (code, "sheet_format" in errors) == (2, True)


def test_without_an_ending_it_is_a_folder_of_exact_frames_enlarged(lfdm: Lfdm, model: Path, image: Path) -> None:
    options = ["--out", "wave", "--num-inference-steps", 1, "--scale", 2]
    assert lfdm("generate", image, "wave", "--model", model, *options)[0] == 0
    frames = read_video("wave")
    assert frames.shape == (4, 64, 64, 3)
    assert np.array_equal(frames[0, ::2, ::2], np.asarray(Image.open(image)))
    assert np.array_equal(frames[:, ::2, ::2], frames[:, 1::2, 1::2])


def test_several_videos_are_numbered_and_equal_single_runs(lfdm: Lfdm, model: Path, image: Path) -> None:
    common = ["generate", image, "wave", "--model", model, "--num-inference-steps", 1]
    code, printed, _ = lfdm(*common, "--out", "many/wave", "--num-videos", 3, "--seed", 7, "--panel")
    assert code == 0
    names = {f"wave-{i}{suffix}" for i in range(3) for suffix in ("", "-panel.gif")}
    assert {path.name for path in Path("many").iterdir()} == names
    assert {Path(line).name for line in printed.splitlines()} == names
    assert read_video("many/wave-1-panel.gif").shape == (4, 208, 976, 3)
    assert lfdm(*common, "--out", "one", "--seed", 8)[0] == 0
    assert np.abs(read_video("one").astype(int) - read_video("many/wave-1")).max() <= 1
    assert np.abs(read_video("one").astype(int) - read_video("many/wave-0")).max() > 1


def test_one_panel_is_named_after_the_video(lfdm: Lfdm, model: Path, image: Path) -> None:
    code, printed, _ = lfdm("generate", image, "raise arms", "--model", model, "--num-inference-steps", 1, "--panel")
    assert code == 0
    assert printed.split() == ["raise-arms.mp4", "raise-arms-panel.gif"]


def test_unconditional_and_half_precision(lfdm: Lfdm, model: Path, image: Path) -> None:
    options = ["--num-inference-steps", 1, "--dtype", "bfloat16", "--fit", "crop"]
    code, printed, _ = lfdm("generate", image, "--unconditional", "--model", model, *options)
    assert (code, printed) == (0, "unconditional.mp4\n")
    assert video_info("unconditional.mp4").fps == LatentFlowPipeline.from_pretrained(model).config["fps"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["person", "waev"], "unknown label 'waev'; did you mean 'wave'? labels: raise arms, wave"),
        (["person"], "give a CONDITION (a label of the model), --unconditional or --reuse-motion; got neither"),
        (["person", "wave=1,waev=2"], "unknown label 'waev'; did you mean 'wave'?"),
        (["person", "wave=0"], "the weights of a mix must have a positive, finite sum"),
        (["person", "wave", "--motion-strength", "3"], "motion_strength must be a finite number, 0 to 2; got 3.0"),
        (["person", "wave", "--motion-mask", "notes.txt"], "notes.txt"),
        (["person", "wave", "--motion", "wave.npz"], "motion files must end in .safetensors; got 'wave.npz'"),
        (["person", "wave", "--guidance-scale", "1", "--negative-condition", "wave"], "guidance_scale must be above 1"),
        (["person", "--reuse-motion", "nothing.safetensors"], "no motion file nothing.safetensors"),
        (["person", "--reuse-motion", "notes.txt", "--guidance-scale", "0"], "guidance_scale: no effect with --reuse-motion"),
        (["person", "wave", "--reuse-motion", "notes.txt"], "CONDITION: no effect with --reuse-motion"),
        (["person", "--reuse-motion", "notes.txt", "--loop", "--seed", "3"], "seed, loop: no effect with"),
        (["person", "--reuse-motion", "notes.txt"], "notes.txt holds no valid motion: "),
        (["person", "wave", "--panel", "regions"], "panel must not contain 'regions' with this model"),
        (["person", "wave", "--panel", "flows"], "'flows'"),
        (["person", "wave", "--unconditional"], "got both"),
        (["person", "--unconditional", "--guidance-scale", "3"], "--guidance-scale has no effect with --unconditional"),
        ([], "IMAGE"),
        (["nothing.png", "wave"], "nothing.png: no such file or folder"),
        (["notes.txt", "wave"], "notes.txt"),
        (
            ["person", "wave", "--out", "wave.mkv"],
            "out must end in .mp4, .webm, .mov, .gif, .webp, .apng, .json",
        ),
        (
            ["person", "wave", "--out", "wave.avi"],
            "out must end in .mp4, .webm, .mov, .gif, .webp, .apng, .json (a sprite sheet) or nothing (a folder "
            "of PNGs); got 'wave.avi'",
        ),
        (["person", "wave", "--num-frames", "10001"], "num_frames must be a whole number from 1 to 10000; got 10001"),
        (["person", "wave", "--num-frames", "many"], "--num-frames"),
        (["person", "wave", "--num-inference-steps", "0"], "num_inference_steps must be a whole number from 1"),
        (["person", "wave", "--guidance-scale", "nan"], "guidance_scale must be a finite number, 0 to 100; got nan"),
        (["person", "wave", "--guidance-scale", "1e30"], "guidance_scale must be a finite number, 0 to 100; got 1e+30"),
        (["person", "wave", "--num-videos", "0"], "num_videos must be"),
        (["person", "wave", "--seed", "-1"], "seed must be"),
        (["person", "wave", "--fps", "0"], "fps must be"),
        (["person", "wave", "--fps", "60", "--out", "a.gif"], "fps must be a finite number, 0.01 to 50; got 60.0"),
        (["person", "wave", "--scale", "0"], "scale must be"),
        (["person", "wave", "--device", "toaster"], "device 'toaster' cannot be used here"),
        (
            ["person", "wave", "--device", "vulkan"],
            "cannot be used here (this installation of torch does not support it); try cpu",
        ),
        (["person", "None"], "got neither (None means no CONDITION)"),
        (["person", "wave", "--out", ".mp4"], "(a folder of PNGs); got '.mp4'"),
        (["person", "wave", "--device", "meta"], "device 'meta' cannot be used here"),
        (["person", "wave", "--fit", "cover"], "'cover'"),
        (["person", "wave", "--model", ""], "model must be a name or a folder; got ''"),
        (["person", "wave", "--model", "nobody"], "unknown model 'nobody'; bundled models: "),
        (["person", "wave", "--model", "./nobody"], "no model folder ./nobody"),
        (["person", "wave", "--model", "~nobody/model"], "no model folder ~nobody/model"),
    ],
)
def test_a_wrong_value_is_one_line_and_writes_no_file(
    lfdm: Lfdm, model: Path, image: Path, arguments: list[str], message: str
) -> None:
    Path("notes.txt").write_text("not an image")
    words = [str(image) if word == "person" else word for word in arguments]
    code, out, err = lfdm("generate", *words, *([] if "--model" in words else ["--model", model]))
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("lfdm: ")
    assert err.count("\n") == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        ("transfer person.png transfer.mp4 --out ./transfer.mp4", "transfer.mp4"),
        ("transfer person.png transfer.mp4 --out new/../transfer.mp4", "transfer.mp4"),
        ("transfer person.png transfer.mp4 --out link.mp4", "transfer.mp4"),
        ("transfer person.png frames --out frames", "frames"),
        ("transfer frames/frame-00000.png transfer.mp4 --out frames", "frames/frame-00000.png"),
        ("transfer person.png frames --out moved.mp4 --motion-mask moved-panel.gif --panel", "moved-panel.gif"),
        ("generate moved-panel.gif wave --out moved-panel.gif", "moved-panel.gif"),
        ("generate moved-panel.gif wave --out moved.mp4 --panel", "moved-panel.gif"),
        ("generate moved-panel-1.gif wave --num-videos 2 --out moved-panel.gif", "moved-panel-1.gif"),
        ("generate person.png --reuse-motion m.safetensors --motion m.safetensors", "m.safetensors"),
    ],
)
def test_no_output_replaces_an_input(
    lfdm: Lfdm, model: Path, image: Path, tmp_path: Path, arguments: str, lost: str, overwrite: list[str]
) -> None:
    picture = Image.open(image)
    picture.save(tmp_path / "person.png")
    for name in ("moved-panel.gif", "moved-panel-1.gif"):
        picture.save(tmp_path / name)
    frames = np.repeat(np.asarray(picture)[None], 3, axis=0)
    write_video(tmp_path / "transfer.mp4", frames, fps=8)
    write_video(tmp_path / "frames", frames, fps=8)
    (tmp_path / "link.mp4").symlink_to("transfer.mp4")
    Motion.from_grid(torch.zeros(1, 2, 16, 16, 2), torch.ones(1, 1, 2, 16, 16), corners=False).save("m.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, printed, error = lfdm(*arguments.split(), "--model", model, *overwrite)
    assert (code, printed) == (2, "")
    assert f"would replace the input {lost}; choose another name" in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_existing_file_is_replaced_only_with_overwrite(lfdm: Lfdm, model: Path, image: Path) -> None:
    common = ["generate", image, "wave", "--model", model, "--num-inference-steps", 1]
    assert lfdm(*common)[1] == "wave.mp4\n"
    first = Path("wave.mp4").read_bytes()
    assert lfdm(*common, "--seed", 1, "--panel")[1].split() == ["wave-2.mp4", "wave-2-panel.gif"]
    Path("wave-2.mp4").unlink()
    assert lfdm(*common)[1] == "wave-2.mp4\n"
    assert lfdm(*common, "--num-videos", 2)[1].split() == ["wave-0.mp4", "wave-1.mp4"]
    assert lfdm(*common, "--num-videos", 2)[1].split() == ["wave-2-0.mp4", "wave-2-1.mp4"]
    assert lfdm(*common, "--panel")[1].split() == ["wave-3.mp4", "wave-3-panel.gif"]
    for given in (
        ["--out", "wave.mp4"],
        ["--out", "new/../wave.mp4"],
        ["--out", "wave-2.mp4", "--panel"],
        ["--out", "wave.gif", "--motion", "m.safetensors"],
    ):
        Path("m.safetensors").touch()
        code, printed, error = lfdm(*common, "--seed", 1, *given)
        assert (code, printed) == (2, "")
        assert error.endswith("exists; choose another name or give --overwrite\n")
    assert Path("wave.mp4").read_bytes() == first
    assert lfdm(*common, "--seed", 1, "--overwrite")[1] == "wave.mp4\n"
    assert Path("wave.mp4").read_bytes() != first
    Path("empty").mkdir()
    assert lfdm(*common, "--out", "empty")[1] == "empty\n"


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not looked up on Windows")
def test_what_a_killed_run_left_is_removed_by_the_next_one(lfdm: Lfdm, model: Path, image: Path) -> None:
    make = "from pathlib import Path; from lfdm.folders.files import temporary_path; temporary_path(Path('jump.mp4')).touch()"
    subprocess.run([sys.executable, "-c", make], check=True)
    assert [path.suffix for path in Path.cwd().iterdir()] == [".tmp"]
    assert lfdm("generate", image, "wave", "--model", model, "--num-inference-steps", 1)[0] == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["wave.mp4"]


def test_a_driving_video_with_the_name_of_the_output_stays(lfdm: Lfdm, model: Path, image: Path) -> None:
    write_video("transfer.mp4", np.repeat(np.asarray(Image.open(image))[None], 3, axis=0), fps=8)
    before = Path("transfer.mp4").read_bytes()
    assert lfdm("transfer", image, "transfer.mp4", "--model", model)[1] == "transfer-2.mp4\n"
    assert Path("transfer.mp4").read_bytes() == before


@pytest.mark.slow  # starts processes
def test_a_full_disk_is_one_line(model: Path, image: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys, lfdm.pipeline.outputs\n"
        "from lfdm.cli import COMMANDS\n"
        "from lfdm.cli.console import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"sys.exit(run(COMMANDS, ['generate', {str(image)!r}, 'wave', '--model', {str(model)!r}, '--out', 'wave', "
        "'--num-inference-steps', '1'], ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "could not be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_transfer_has_the_length_and_rate_of_the_driving_video(lfdm: Lfdm, model: Path, image: Path, puppets_dir: Path) -> None:
    clip = next(puppets_dir.rglob("*.avi"))
    common = ["transfer", image, clip, "--model", model, "--out"]
    code, printed, _ = lfdm(*common, "moved", "--panel")
    assert code == 0
    assert printed.split() == ["moved", "moved-panel.gif"]
    assert read_video("moved").shape == read_video(clip).shape
    assert (
        lfdm(*common, "moved.mp4", "--absolute", "--num-frames", 3, "--motion", "moved.safetensors", "--dtype", "bfloat16")[0]
        == 0
    )
    assert Motion.load("moved.safetensors").flow.shape == (1, 2, 3, 16, 16)
    assert lfdm(*common, "still", "--motion-strength", 0)[0] == 0
    assert np.array_equal(read_video("still")[-1], np.asarray(Image.open(image)))
    info = video_info("moved.mp4")
    assert (info.frames, info.fps) == (3, video_info(clip).fps)
    code, _, err = lfdm("transfer", image, "nothing.mp4", "--model", model)
    assert (code, err) == (2, "lfdm: nothing.mp4: no such file or folder\n")


def test_transfer_keeps_the_sound_of_the_driving_video(lfdm: Lfdm, model: Path, image: Path) -> None:
    with av.open("driving.mov", "w") as file:
        video = cast(VideoStream, file.add_stream("png", rate=10))
        video.width, video.height, video.pix_fmt = 32, 32, "rgb24"
        audio = cast(AudioStream, file.add_stream("pcm_s16le", rate=8000, layout="mono"))
        for _ in range(4):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.asarray(Image.open(image).convert("RGB")))))
        sound = av.AudioFrame.from_ndarray(np.ones((1, 3200), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        file.mux(audio.encode(sound))
        file.mux(video.encode())
        file.mux(audio.encode(None))
    options = {"a.mp4": [], "a.webm": [], "a.gif": [], "b.mp4": ["--no-audio"], "c.mp4": ["--fps", 5], "d.mp4": ["--fps", 10]}
    for name, option in options.items():
        assert lfdm("transfer", image, "driving.mov", "--model", model, "--out", name, *option)[0] == 0
    assert [has_sound(Path(name)) for name in options] == [True, True, False, False, False, True]
    assert len(read_video("a.mp4")) == 4


def test_a_saved_motion_moves_other_images(lfdm: Lfdm, model: Path, image: Path, tmp_path: Path) -> None:
    common = ["--model", model, "--num-videos", 3, "--num-inference-steps", 1]
    code, printed, _ = lfdm("generate", image, "wave=2,raise arms=1", *common, "--out", "first", "--motion", "m/wave.safetensors")
    assert code == 0
    assert printed.split() == ["first-0", "first-1", "first-2", "m/wave.safetensors"]
    code, printed, _ = lfdm("generate", image, "--reuse-motion", "m/wave.safetensors", "--model", model, "--out", "again")
    assert code == 0
    assert printed.split() == ["again-0", "again-1", "again-2"]
    assert all(np.array_equal(read_video(f"first-{i}"), read_video(f"again-{i}")) for i in range(3))
    Image.fromarray(255 - np.asarray(Image.open(image))).save(tmp_path / "other.png")
    steered = ["--motion-strength", 0, "--motion", "still.safetensors"]
    assert lfdm("generate", "other.png", "--reuse-motion", "m/wave.safetensors", "--model", model, *steered)[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["wave-0.mp4", "wave-1.mp4", "wave-2.mp4"]
    assert not Motion.load("still.safetensors").flow.any()


def test_motion_control_options(lfdm: Lfdm, model: Path, image: Path) -> None:
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 32, axis=0).repeat(16, axis=1)).save("mask.png")
    common = ["generate", image, "wave", "--model", model, "--num-inference-steps", 1, "--out"]
    source = np.asarray(Image.open(image))
    assert lfdm(*common, "still", "--motion-strength", 0)[0] == 0
    assert np.array_equal(read_video("still"), np.broadcast_to(source, (4, 32, 32, 3)))
    assert lfdm(*common, "masked", "--motion-mask", "mask.png")[0] == 0
    masked = read_video("masked")
    assert np.array_equal(masked[:, :, :16], np.broadcast_to(source[:, :16], (4, 32, 16, 3)))
    assert (masked[1:, :, 16:] != source[:, 16:]).any()
    away = ["--negative-condition", "raise arms=1", "--guidance-scale", 2, "--loop", "--num-frames", 20]
    assert lfdm(*common, "away", *away)[0] == 0
    assert len(read_video("away")) == 20


@pytest.mark.parametrize("form", ["gif", "mp4", "png"])
def test_panels_of_named_tiles(lfdm: Lfdm, model: Path, image: Path, form: str) -> None:
    options = ["--panel", "generated", "arrows", "overlay", "--panel-format", form, "--num-inference-steps", 1]
    code, printed, _ = lfdm("generate", image, "wave", "--model", model, *options)
    assert code == 0
    name = "wave-panel" if form == "png" else f"wave-panel.{form}"
    assert printed.split() == ["wave.mp4", name]
    assert read_video(name).shape == (4, 208, 3 * 192 + 2 * 4, 3)


def test_a_panel_format_needs_a_panel(lfdm: Lfdm, model: Path, image: Path) -> None:
    code, _, errors = lfdm("generate", image, "wave", "--model", model, "--panel-format", "png")
    assert code == 2
    assert errors.strip().endswith("--panel-format has no effect without --panel; got png")


def test_a_panel_of_the_regions_of_stage_1(lfdm: Lfdm, tiny_paper_preset: Preset, image: Path, tmp_path: Path) -> None:
    pipe = LatentFlowPipeline.from_preset(tiny_paper_preset)
    pipe.save_pretrained(tmp_path / "paper")
    options = ["--num-inference-steps", 1, "--panel", "generated", "regions", "--panel-format", "png", "--out", "moved"]
    code, printed, _ = lfdm("generate", image, "--unconditional", "--model", "paper", *options)
    assert (code, printed.split()) == (0, ["moved", "moved-panel"])
    panel = read_video("moved-panel").astype(int)
    assert panel.shape == (3, 208, 2 * 192 + 4, 3)
    generated, regions = panel[:, 16:, :192], panel[:, 16:, 196:]
    # what is added to the generated frame is each region's heat in a hue of its own
    heat = region_maps(pipe, read_video("moved"))
    assert heat.shape == (3, 2, 8, 8)
    assert (heat >= 0).all()
    assert (heat.max(axis=(2, 3)) > 0.9).all()  # 1 at each centre, which lies between points
    change = np.abs(regions - generated).sum(axis=(0, 3))
    brightest = heat.max(axis=1).sum(axis=0).repeat(24, axis=0).repeat(24, axis=1)
    assert np.corrcoef(change.ravel(), brightest.ravel())[0, 1] > 0.3


def test_demo_shows_every_label_of_the_bundled_model(
    lfdm: Lfdm, model: Path, image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "ASSETS_DIR", tmp_path / "assets")
    code, _, err = lfdm("demo")
    assert code == 2
    assert "unknown model 'puppets64'; bundled models: none in this installation" in err
    bundle = tmp_path / "assets" / "puppets64"
    LatentFlowPipeline.from_pretrained(model).save_pretrained(bundle)
    code, _, err = lfdm("demo")
    assert code == 2
    assert "no example images" in err
    (bundle / "images").mkdir()
    Image.open(image).save(bundle / "images" / "person.png")
    code, printed, _ = lfdm("demo", "--out", "demo")
    assert code == 0
    assert printed.split() == ["demo/raise-arms.mp4", "demo/raise-arms-panel.gif", "demo/wave.mp4", "demo/wave-panel.gif"]
    assert lfdm("demo", "--out", "demo")[:2] == (0, printed)
    assert video_info("demo/wave.mp4").width == 128


def test_info_names_labels_and_bundled_models(lfdm: Lfdm, model: Path) -> None:
    code, out, _ = lfdm("info", "--model", model)
    assert code == 0
    assert "raise arms, wave" in out
    assert "4 frames of 32x32, 8 per second" in out
    assert "FrameCodec, samples of 3x4x16x16" in out
    code, out, _ = lfdm("info")
    assert code == 0
    assert "bundled models" in out
    assert "mug128" in out


def test_a_stage_1_run_transfers_and_reuses_motion_but_does_not_generate(
    lfdm: Lfdm, model: Path, image: Path, tmp_path: Path
) -> None:
    """The run is a checkpoint of stage 1 with the settings of its training."""
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-00000001"
    shutil.copytree(model / "autoencoder", checkpoint / "autoencoder")
    (checkpoint / "state.json").write_text("{}")
    (run / "config.json").write_text(json.dumps({"stage": "autoencoder", "preset": to_json(FLOW64)}))
    write_video("driving.mp4", np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8), fps=8)
    assert lfdm("transfer", image, "driving.mp4", "--model", run, "--out", "moved", "--motion", "m.safetensors")[0] == 0
    assert read_video("moved").shape == (4, 64, 64, 3)
    assert lfdm("generate", image, "--reuse-motion", "m.safetensors", "--model", checkpoint, "--out", "again")[0] == 0
    assert np.array_equal(read_video("moved"), read_video("again"))
    code, _, err = lfdm("generate", image, "wave", "--model", run)
    assert (code, err.count("\n")) == (2, 1)
    assert "stage-1 run" in err
    assert "train diffusion" in err


def test_the_image_may_be_a_frame_of_a_clip_which_is_never_replaced(lfdm: Lfdm, model: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    write_video("clip.webm", frames, fps=4, lossless=True)
    common = ["--model", model, "--motion-strength", 0]
    for name, index in (("clip.webm@2", 2), ("clip.webm@0.3s", 1)):
        assert lfdm("transfer", name, "clip.webm", *common, "--out", f"moved-{index}")[0] == 0
        assert lfdm("generate", name, "wave", *common, "--num-inference-steps", 1, "--out", f"made-{index}")[0] == 0
        assert all(np.array_equal(read_video(f"{out}-{index}")[-1], frames[index]) for out in ("moved", "made"))
    code, _, err = lfdm("generate", "clip.webm@0", "wave", *common, "--out", "clip.webm", "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "clip.webm would replace the input clip.webm" in err
    code, _, err = lfdm("generate", "clip.webm@7s", "wave", *common)
    assert (code, err) == (2, "lfdm: clip.webm: has no frame at 7 s; it lasts 1.00 s\n")


def test_full_size_frames_are_moved_pixels_of_the_picture(lfdm: Lfdm, model: Path) -> None:
    y, x = np.mgrid[:90, :161]
    picture = np.stack([x, y, x + y // 2], axis=-1).astype(np.uint8)
    Image.fromarray(picture).save("wide.png")
    options = ["--model", model, "--num-inference-steps", 1, "--num-frames", 2, "--full-size"]
    assert lfdm("generate", "wide.png", "wave", "--out", "frames", *options, "--panel", "generated", "flow")[0] == 0
    frames = read_video(Path("frames"))
    assert frames.shape == (2, 90, 161, 3)
    assert np.array_equal(frames[0], picture)
    assert read_video(Path("frames-panel.gif")).shape == (2, 16 + 90, 2 * 161 + 4, 3)
    code, _, err = lfdm("generate", "wide.png", "wave", "--out", "a.gif", *options, "--max-megapixels", 0.01)
    assert code != 0
    assert "max_megapixels" in err
    code, _, err = lfdm("generate", "wide.png", "wave", "--out", "a.gif", "--model", model, "--max-megapixels", 3)
    assert code != 0
    assert "--full-size" in err


def test_a_clip_of_very_many_frames_is_used_only_by_request(
    lfdm: Lfdm, model: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lfdm.cli.videos.MAX_DEFAULT_FRAMES", 2)
    frames = np.repeat(np.asarray(Image.open(image))[None], 3, axis=0)
    write_video("many.mp4", frames, fps=8)
    code, _, err = lfdm("transfer", image, "many.mp4", "--model", model)
    assert (code, err) == (2, "lfdm: many.mp4: 3 frames; give --num-frames to use more than 2\n")
    assert lfdm("transfer", image, "many.mp4", "--model", model, "--num-frames", 3)[0] == 0
