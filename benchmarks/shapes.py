"""Measure the cost of animating pictures of other shapes than those of training: `python -m benchmarks.shapes`.

Puppets are rendered at each size, as large as in a square of the short side. Stage 1 reconstructs their clips from frame 0; then
videos of every action are generated from it with fit="native". A generated motion counts as right if, of the exact motions of
all actions of the subject, that of the requested one is nearest (mean absolute difference of the displacement's length).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.experiment.tables import RESULTS_DIR, write_results
from lfdm.config.video import Size
from lfdm.data.puppets.actions import ACTIONS
from lfdm.data.puppets.data_set import PuppetClip, render_clip
from lfdm.evaluation.metrics.frames import psnr_per_clip
from lfdm.evaluation.metrics.motion import ExactMotion, displacement_px, flow_epe_ratio, pool, warp_recovery
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.visualize import contact_sheet

SIZES = ((64, 64), (48, 64), (48, 80), (80, 48), (64, 96))
FIRST_SUBJECT = 900_000
"""Seeds of subjects from here on are in no training set."""
TAKE = 7


def exact_motion(clip: PuppetClip) -> ExactMotion:
    """Return the exact motion of a clip as a batch of one."""
    truth = clip.truth
    assert truth is not None
    flow, drift = torch.from_numpy(truth.flow).permute(3, 0, 1, 2), torch.from_numpy(truth.drift).T
    parts = (flow.contiguous(), torch.from_numpy(truth.visible), torch.from_numpy(truth.figure), drift.contiguous())
    return ExactMotion(*(part[None] for part in parts))


@torch.inference_mode()
def measure_stage1(pipe: LatentFlowPipeline, clips: list[PuppetClip]) -> dict[str, float]:
    """Reconstruct clips from their first frames."""
    psnr, copied, errors, recovered = [], [], [], []
    for clip in clips:
        video = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 255
        source, exact = video[:, :, 0], exact_motion(clip)
        motion = pipe.autoencoder.estimate_motion(source, video)
        frames = pipe.autoencoder.decode(pipe.autoencoder.encode(source), motion).prediction
        psnr.append(psnr_per_clip(frames[:, :, 1:], video[:, :, 1:]).item())
        copied.append(psnr_per_clip(video[:, :, :1].expand_as(video)[:, :, 1:], video[:, :, 1:]).item())
        errors.append(flow_epe_ratio(displacement_px(motion, exact.size).float(), exact))
        recovered.append(warp_recovery(frames, video, exact))
    ratios = {"flow_epe_ratio": pool(torch.cat(errors))["value"], "warp_recovery": pool(torch.cat(recovered))["value"]}
    return {"psnr": float(np.mean(psnr)), "copy_psnr": float(np.mean(copied)), **ratios}


def measure_generation(pipe: LatentFlowPipeline, clips: list[PuppetClip], size: Size) -> tuple[list[bool], np.ndarray]:
    """Generate every action from the first frame; return which motions are right, and the frames."""
    source = clips[0].frames[0]
    seeds = list(range(len(ACTIONS)))
    out = pipe([source] * len(ACTIONS), list(ACTIONS), generator=seeds, fit="native", output_type="uint8")
    lengths = displacement_px(out.motion, size).norm(dim=1).numpy()
    exact = [exact_motion(clip) for clip in clips]
    real = [((one.flow - one.drift[..., None, None]).norm(dim=1) * one.figure)[0].numpy() for one in exact]
    nearest = [int(np.argmin([np.abs(length - other).mean() for other in real])) for length in lengths]
    return [found == index for index, found in enumerate(nearest)], np.asarray(out.frames)


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality on pictures of other shapes than those of training.")
    parser.add_argument("--model", default="puppets64")
    parser.add_argument("--num-subjects", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "shapes-puppets64.json")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    options = parser.parse_args()
    pipe = LatentFlowPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    results: dict[str, Any] = {
        "model": options.model,
        "num_subjects": options.num_subjects,
        "num_actions": len(ACTIONS),
        "sizes": {},
    }
    for size in (Size(*one) for one in SIZES):
        all_clips, right = [], []
        for subject in range(FIRST_SUBJECT, FIRST_SUBJECT + options.num_subjects):
            clips = [render_clip(subject, action, TAKE, size=size) for action in ACTIONS]
            found, frames = measure_generation(pipe, clips, size)
            all_clips, right = all_clips + clips, right + found
            if options.sheets is not None and subject == FIRST_SUBJECT:
                rows = [video for index, clip in enumerate(clips) for video in (clip.frames, frames[index])]
                titles = [title for action in ACTIONS for title in (f"{action}, real", f"{action}, generated")]
                options.sheets.mkdir(parents=True, exist_ok=True)
                Image.fromarray(contact_sheet(rows, titles)).save(options.sheets / f"{size}.png")
        results["sizes"][str(size)] = measure_stage1(pipe, all_clips) | {"right_motion": float(np.mean(right))}
        print(size, {name: round(value, 3) for name, value in results["sizes"][str(size)].items()}, flush=True)
        write_results(results, options.out)


if __name__ == "__main__":
    main()
