"""Time whole calls with ordinary and distilled networks, in turns: `python -m benchmarks.speed calls`."""

import os
import re
import time
from dataclasses import dataclass, replace

import torch

from benchmarks.experiment.tables import RESULTS_DIR, write_results
from benchmarks.speed.calls_table import GUIDED, LARGER_CALL, LONG_CALL, PAPER_CALL, PREFIX, SHORT_CALL
from benchmarks.speed.measuring import device_name
from lfdm.config.presets import get_preset
from lfdm.config.training import FewStepsConfig
from lfdm.diffusion.schedulers import MotionScheduler
from lfdm.pipeline.pipeline import LatentFlowPipeline
from lfdm.training.few_steps import load_teacher, make_student

STEPS = (4, 2, 1)


@dataclass(kw_only=True)
class Options:
    """Options of the timing of calls."""

    num_rounds: int = 3
    """Timed rounds after one that warms up; 1 for the preset of the paper's size."""
    num_threads: int = 1
    """More than one: time on the clock, which means something only if nothing else runs."""


@dataclass(frozen=True)
class Call:
    """A call for one video, and how often it is timed."""

    teacher: LatentFlowPipeline
    num_frames: int
    num_rounds: int

    def seconds(self) -> dict[str, list[float]]:
        """Return the seconds of every round by number of steps."""
        student = make_student(self.teacher, FewStepsConfig())
        kinds = {GUIDED: (self.teacher, 10), **{str(n): (student, n) for n in STEPS}}
        seconds = {name: [] for name in kinds}
        for turn in range(self.num_rounds + 1):
            for name, (pipe, num_steps) in kinds.items():
                taken = self._time(pipe, num_steps if turn or self.num_rounds > 1 else 1)
                if turn > 0:
                    seconds[name].append(taken)
        return seconds

    def _time(self, pipe: LatentFlowPipeline, num_steps: int) -> float:
        pipe.set_progress_bar_config(disable=True)
        embedding = torch.ones(1, pipe.condition.dim)
        image = torch.rand(3, *pipe.size, generator=torch.Generator().manual_seed(0))
        options = {"num_frames": self.num_frames, "num_inference_steps": num_steps, "guidance_scale": 2.0}
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        pipe(image, embedding, generator=0, output_type="uint8", **options)
        return clock() - start


def run(options: Options) -> None:
    """Time calls of 64x64, 128x128 and the paper's size, and long ones."""
    torch.set_num_threads(options.num_threads)
    bundled = load_teacher("puppets64")
    bundled.scheduler = MotionScheduler(prediction_type="v_prediction")
    paper = get_preset("mug128")
    paper = replace(paper, diffusion=replace(paper.diffusion, prediction_type="v_prediction", sampler="dpmpp_2m"))
    calls = {
        SHORT_CALL: Call(bundled, 16, options.num_rounds),
        LONG_CALL: Call(bundled, 128, 1),
        LARGER_CALL: Call(LatentFlowPipeline.from_preset("flow128"), 16, options.num_rounds),
        PAPER_CALL: Call(LatentFlowPipeline.from_preset(paper), 40, 1),
    }
    load = os.getloadavg()[0]
    device = device_name(torch.device("cpu"))
    seconds = {}
    for name, call in calls.items():
        seconds[name] = call.seconds()
        print(name, seconds[name], flush=True)
    results = {"device": device, "torch": torch.__version__, "load": load, "seconds": seconds}
    write_results(results, RESULTS_DIR / f"{PREFIX}{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json")
