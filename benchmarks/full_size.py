"""Measure frames in the picture's own size against real ones.

    python -m benchmarks.full_size

Puppets are rendered at several times the size of the bundled model, and at its own size. The motion of the small clip is
transferred to the first frame of the large one, so that every other large frame is known. Writes
benchmarks/results/full-size.json and docs/full-size.md.

    python -m benchmarks.full_size --model runs/stage1 --sizes 512    # another model, also a stage-1 run: full-size-<size>.json
    python -m benchmarks.full_size --render    # only the document, from the stored results

Shapes: frames (t, H, W, 3) uint8, or (t, 3, H, W) in [0, 1].
"""

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks.experiment.machine import machine
from benchmarks.experiment.tables import RESULTS_DIR, ROOT, number, table, write_results
from lfdm import LatentFlowPipeline
from lfdm.data.fitting import fit_frames
from lfdm.data.puppets.actions import ACTIONS
from lfdm.data.puppets.data_set import PuppetClip, render_clip
from lfdm.folders.model_folder import read_json
from lfdm.motion.guided_upsampling import sample_points
from lfdm.motion.warp import flow_to_grid
from lfdm.pipeline.transfer import MotionTransfer, Stage1Pipeline
from lfdm.visualize import contact_sheet

PREFIX = "full-size"
RESULTS, DOCUMENT = RESULTS_DIR / f"{PREFIX}.json", ROOT / "docs" / "full-size.md"
FIRST_SUBJECT = 20_000
"""Seed of the first subject, far from those of training and test data."""
NUM_FRAMES = 16
SHOWN = (3, 7, 11, 15)
"""Frames that are measured."""
WAYS = {
    "decoder": "the decoder's frames, enlarged (bicubic)",
    "bilinear": "flow and occlusion enlarged bilinearly",
    "full size": '`output_size="native"`',
    "exact flow": "the exact flow at full size, hidden pixels from the decoder",
}
MOVING = 2.0
"""Displacement in pixels of the model from which a pixel of the figure counts as moving."""
PHOTOGRAPH = (1080, 1920)
HEAD = """# Frames in the picture's own size

`pipe(image, ..., output_size="native")`, `--full-size` (also of `lfdm transfer` and `--reuse-motion`), a switch on the page and
`full_size` of its API give frames in the size of the picture. The motion is made at the model's size. Near its boundaries every
pixel chooses among the motions around it by the colour that each fetches from the picture, so that outlines are as sharp as in
the picture; the picture's own pixels are moved, and only what it does not show is taken from the decoder, enlarged. Frame 0 and
frames of strength 0 are the picture, bit for bit.

- The picture may have any shape: borders of `pad` fall away; outside of a `crop` nothing moves, and the motion ends smoothly at
  its edge; `stretch` stretches the flow.
- Pictures of over 16 megapixels are refused unless `max_megapixels` (`--max-megapixels`) is raised: `frames` and `warped` of 16
  frames of 16 megapixels take 1.5 GB as `uint8`.
- `--panel` shows them reduced to 512 pixels, and flow and occlusion over the whole picture, whatever part of it the model sees.
- A server allows 64 megapixels in all frames of a video together (`lfdm serve --full-size-megapixels`).
- With alpha, the alpha plane is moved with the colours.
- What the model gets wrong stays wrong, only sharply: a limb that it loses is lost.

Rendered from benchmarks/results/full-size.json by `python -m benchmarks.full_size --render`.
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="puppets64")
    parser.add_argument("--note", default="", help="how the model was trained, for the document")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--render", action="store_true")
    arguments = parser.parse_args()
    if not arguments.render:
        torch.set_num_threads(1)
        bundled = arguments.model == "puppets64"
        pipe = (LatentFlowPipeline if bundled else Stage1Pipeline).from_pretrained(arguments.model)
        path = RESULTS if bundled else RESULTS.with_name(f"{PREFIX}-{pipe.size}.json")
        results: dict[str, Any] = {"model": arguments.model if bundled else arguments.note, "model_size": str(pipe.size)}
        results |= {"clips": arguments.clips, "machine": machine(), "sizes": {}}
        for size in arguments.sizes:
            results["sizes"][str(size)] = measure_size(pipe, size, arguments.clips, arguments.sheets)
            write_results(results, path)
        if isinstance(pipe, LatentFlowPipeline):
            results["photograph"] = measure_photograph(pipe, arguments.sheets)
            write_results(results, path)
    DOCUMENT.write_text(render_document())


def measure_size(pipe: MotionTransfer, size: int, num_clips: int, sheets: Path | None) -> dict[str, Any]:
    """Return the means of all figures over clips, by way."""
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    seconds = []
    for number_ in range(num_clips):
        action = list(ACTIONS)[number_ % len(ACTIONS)]
        clip = render_clip(FIRST_SUBJECT + number_, action, number_, size=size, num_frames=NUM_FRAMES, truth=True)
        made, took = make_frames(pipe, clip)
        seconds.append(took)
        real = to_float(clip.frames)[list(SHOWN)]
        moving = moving_pixels(clip, size / pipe.size.width)
        for way, frames in made.items():
            figures[way].append(measure(frames, real, moving))
        if sheets is not None:
            rows = [clip.frames[list(SHOWN)], *((255 * frames).round().byte().movedim(1, -1).numpy() for frames in made.values())]
            sheets.mkdir(parents=True, exist_ok=True)
            sheet = contact_sheet(rows, ["real", *made], num_frames=len(SHOWN))
            Image.fromarray(sheet).save(sheets / f"{size}-{number_}-{action}.png")
    means = {way: {key: statistics.mean(one[key] for one in each) for key in each[0]} for way, each in figures.items()}
    return {"ways": means, "seconds_per_frame": statistics.median(seconds)}


def make_frames(pipe: MotionTransfer, clip: PuppetClip) -> tuple[dict[str, Tensor], float]:
    """Return the frames `SHOWN` by way, and the seconds per frame of the full-size ones (beyond those of the model's size)."""
    height, width = clip.frames.shape[1:3]
    image, small = clip.frames[0], fit_frames(clip.frames, pipe.size, "pad")
    started = time.process_time()
    output = pipe.transfer(small[0], small, output_type="pt")
    at_model = time.process_time()
    full = pipe.transfer(image, small, output_type="pt", output_size="native")
    seconds = (time.process_time() - at_model - (at_model - started)) / len(small)
    assert isinstance(output.frames, Tensor)
    assert isinstance(full.frames, Tensor)
    shown = list(SHOWN)
    enlarged = F.interpolate(output.frames[0, shown], size=(height, width), mode="bicubic").clamp(0, 1)
    picture = to_float(image[None])
    flow = F.interpolate(output.motion.flow[0].movedim(1, 0)[shown], size=(height, width), mode="bilinear")
    occlusion = F.interpolate(output.motion.occlusion[0].movedim(1, 0)[shown], size=(height, width), mode="bilinear")
    assert clip.truth is not None
    exact = torch.from_numpy(clip.truth.flow[shown]).movedim(-1, 1) / torch.tensor((width / 2, height / 2)).view(1, 2, 1, 1)
    visible = torch.from_numpy(clip.truth.visible[shown])[:, None].float()
    made = {
        "decoder": enlarged,
        "bilinear": torch.lerp(enlarged, warped(picture, flow), occlusion),
        "full size": full.frames[0, shown],
        "exact flow": torch.lerp(enlarged, warped(picture, exact), visible),
    }
    return made, seconds


def warped(picture: Tensor, flow: Tensor) -> Tensor:
    """Warp a picture (1, 3, H, W) by flow (t, 2, H, W) in half images, bicubic as full-size frames are."""
    grid = flow_to_grid(flow.movedim(0, 1)[None], corners=False)[0]
    pixels = (grid + 1) * torch.tensor(tuple(reversed(picture.shape[-2:]))) / 2 - 0.5
    frames = [sample_points(picture, *one.flatten(0, 1).T, mode="bicubic").view_as(picture[0]) for one in pixels]
    return torch.stack(frames).clamp(0, 1)


def moving_pixels(clip: PuppetClip, scale: float) -> Tensor:
    """Return which pixels (t, H, W) of the frames `SHOWN` belong to the figure and have moved."""
    assert clip.truth is not None
    length = np.linalg.norm(clip.truth.flow[list(SHOWN)], axis=-1)
    return torch.from_numpy(clip.truth.figure[list(SHOWN)] & (length > MOVING * scale))


def measure(frames: Tensor, real: Tensor, moving: Tensor) -> dict[str, float]:
    """Return errors against the real frames (t, 3, H, W), and the sharpness of moving parts (t, H, W) as a share of theirs."""
    difference = (frames - real).abs().mean(dim=1) * 255
    similarity = structural_similarity_index_measure(frames, real, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return {
        "l1": difference.mean().item(),
        "l1_moving": (difference * moving).sum().item() / max(1, int(moving.sum())),
        "ssim": similarity.item(),
        "sharpness": gradient_energy(frames, moving) / gradient_energy(real, moving),
    }


def gradient_energy(frames: Tensor, where: Tensor) -> float:
    """Return the sum of the squared differences of neighbouring pixels."""
    across, down = (frames.diff(dim=dim)[..., : frames.shape[-2] - 1, : frames.shape[-1] - 1] for dim in (-1, -2))
    return ((across.square() + down.square()).sum(dim=1) * where[..., :-1, :-1]).sum().item()


def measure_photograph(pipe: LatentFlowPipeline, sheets: Path | None) -> dict[str, Any]:
    """Return time and memory of 16 frames of a noisy picture of 1,920x1,080 with a puppet, in this process."""
    height, width = PHOTOGRAPH
    image = photograph(height, width)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    output = pipe(image, "wave", generator=0, output_type="uint8", output_size="native")
    seconds, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(output.frames, np.ndarray)
    if sheets is not None:
        for index in SHOWN:
            Image.fromarray(output.frames[0, index]).save(sheets / f"photograph-{index}.png")
    return {
        "size": f"{width}x{height}",
        "frames": output.frames.shape[1],
        "seconds": seconds,
        "peak_memory_mb": peak / 1e3,
        "peak_memory_before_mb": before / 1e3,
        "result_mb": 2 * output.frames.nbytes / 1e6,
        "frame_0_is_the_picture": bool(np.array_equal(output.frames[0, 0], image)),
    }


def photograph(height: int, width: int) -> np.ndarray:
    """Draw a picture with the fine detail and the grain of a photograph: a puppet in front of a cluttered background."""
    rng = np.random.default_rng(0)
    scales = [rng.normal(size=(3, max(2, height // step), max(2, width // step))) for step in (4, 16, 64, 256)]
    layers = [F.interpolate(torch.from_numpy(one)[None].float(), size=(height, width), mode="bicubic")[0] for one in scales]
    shares = torch.tensor((8.0, 12.0, 16.0, 24.0)).view(-1, 1, 1, 1)
    background = 128 + (torch.stack(layers) * shares).sum(dim=0)
    subject = render_clip(FIRST_SUBJECT, "wave", 0, size=height, num_frames=2)
    assert subject.truth is not None
    left = (width - height) // 2
    made = background.movedim(0, -1).numpy().copy()
    mask = (
        np.asarray(Image.fromarray(subject.truth.figure[0]).convert("L").filter(ImageFilter.GaussianBlur(1)), float)[..., None]
        / 255
    )
    part = made[:, left : left + height]
    part[:] = part * (1 - mask) + subject.frames[0] * mask
    return np.rint(made + rng.normal(scale=4, size=made.shape)).clip(0, 255).astype(np.uint8)


def to_float(frames: np.ndarray) -> Tensor:
    """Convert (t, H, W, 3) uint8 to (t, 3, H, W) in [0, 1]."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255


def render_document() -> str:
    """Render the document from the stored results: the bundled model, then others."""
    others = sorted(RESULTS_DIR.glob(f"{PREFIX}-*.json"))
    return "\n".join([_render_bundled(read_json(RESULTS)), *(render_sizes(read_json(path)) for path in others)])


def _render_bundled(results: dict[str, Any]) -> str:
    photo = results["photograph"]
    return (
        HEAD
        + "\n"
        + render_sizes(results)
        + f"\nA drawn photograph of {photo['size']} (a puppet, fine texture, grain), {photo['frames']} frames, sampled: "
        f"{photo['seconds']:.0f} s of one core, peak memory of the process {photo['peak_memory_mb']:.0f} MB "
        f"({photo['peak_memory_before_mb']:.0f} MB before), with {photo['result_mb']:.0f} MB of result. Frame 0 is the picture: "
        f"{'yes' if photo['frame_0_is_the_picture'] else 'no'}.\n"
    )


def render_sizes(results: dict[str, Any]) -> str:
    """Render the table of one model."""
    rows = []
    for size, one in results["sizes"].items():
        for way, figures in one["ways"].items():
            seconds = number(one["seconds_per_frame"], 2) if way == "full size" else ""
            values = [
                number(figures[key], digits) for key, digits in (("l1", 2), ("l1_moving", 1), ("ssim", 3), ("sharpness", 2))
            ]
            rows.append([f"{size}x{size}", WAYS[way], *values, seconds])
    header = ["size", "frames from", "L1", "L1, moving parts", "SSIM", "sharpness, moving parts", "seconds a frame"]
    size = results.get("model_size", "64x64")
    name = f"`{results['model']}`" if results["model"] == "puppets64" else results["model"]
    return (
        f"{results['clips']} clips of puppets, motion estimated by {name} ({size}), frames "
        f"{', '.join(map(str, SHOWN))} against those rendered at full size. L1 of 255; sharpness is gradient energy as a share "
        "of the real frames', so that errors with hard edges count as sharp, too. Seconds of one core beyond the model's own "
        f"({results['machine']}).\n\n" + table(header, rows)
    )


if __name__ == "__main__":
    main()
