"""Tiny inputs and the command lines that use them: every command of lfdm that writes, in a second or a few."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.processes import run
from lfdm.data.index import CLIPS_DIR

SIZE = 32
DATA = f"--size {SIZE} --num-frames 6 --num-workers 1"
NETWORKS = (
    f"--size {SIZE} --num-frames 4 --autoencoder.channels 4 --autoencoder.max-channels 8 --autoencoder.num-res-blocks 1"
    " --autoencoder.predictor.channels 8 8 16 16 --autoencoder.predictor.match-channels 8 --unet.latent-channels 8"
    " --unet.condition-dim 8 --unet.dim 8 --unet.channel-multipliers 1 1 2 --unet.num-heads 2 --unet.head-dim 8"
    " --diffusion.num-inference-steps 2 --diffusion-training.panel-inference-steps 1"
)
OPTIMIZATION = "batch-size 2, warmup-steps 2, mixed-precision no, checkpoint-steps 4, log-steps 2, sample-steps 8"
EVALUATION = (
    "--num-clips 6 --num-ceiling-clips 2 --batch-size 2 --num-diversity-clips 2 --allow-small"
    " --classifier.num-steps 2 --frame-network.num-steps 2"
)
NUM_REQUESTS = 8
"""Videos of a batch."""


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Command lines with inputs in `root`. A method returns the words of `lfdm ...`, which writes `out`."""

    root: Path
    num_steps: int = 16
    """Steps of a training, with a checkpoint every 4."""

    @property
    def data(self) -> Path:
        return self.root / "puppets"

    @property
    def tree(self) -> Path:
        return self.root / "tree"

    @property
    def stage1(self) -> Path:
        return self.root / "stage1"

    @property
    def model(self) -> Path:
        return self.root / "stage2"

    def puppets(self, out: Path, *, num_subjects: int = 6) -> list[str]:
        return self._words("data puppets", DATA, num_subjects=num_subjects, num_takes=1, test_fraction=0.34, out=out)

    def folder(self, out: Path) -> list[str]:
        return self._words("data folder", str(self.tree), size=SIZE, out=out)

    def autoencoder(self, out: Path, extra: str = "", data: Path | None = None) -> list[str]:
        optimization = self._optimization("autoencoder-training.optimization")
        return self._words("train autoencoder flow64", NETWORKS, optimization, extra, data=data or self.data, out=out)

    def diffusion(self, out: Path, extra: str = "", data: Path | None = None) -> list[str]:
        optimization = self._optimization("diffusion-training.optimization")
        words = self._words("train diffusion flow64", NETWORKS, optimization, extra, data=data or self.data, out=out)
        return [*words, "--autoencoder", str(self.stage1)]

    def adapt(self, out: Path, extra: str = "", data: Path | None = None) -> list[str]:
        return self._words("adapt", self._optimization("optimization"), extra, model=self.model, data=data or self.data, out=out)

    def evaluate(self, out: Path, data: Path | None = None) -> list[str]:
        return self._words("evaluate", EVALUATION, model=self.model, data=data or self.data, device="cpu", out=out)

    def generate(self, out: Path, extra: str = "") -> list[str]:
        return self._words("generate", f"{self.clip}@0 wave", extra, model=self.model, out=out)

    def transfer(self, out: Path) -> list[str]:
        return self._words("transfer", f"{self.clip}@0 {self.clip}", model=self.model, out=out)

    def batch(self, out: Path) -> list[str]:
        return self._words(f"batch {self.requests} --batch-size 2", model=self.model, device="cpu", out=out)

    @property
    def requests(self) -> Path:
        return self.root / "requests.csv"

    @property
    def clip(self) -> Path:
        return min((self.data / CLIPS_DIR).rglob("wave-*.avi"))

    def _optimization(self, prefix: str) -> str:
        return " ".join(f"--{prefix}.{setting.strip()}" for setting in f"num-steps {self.num_steps}, {OPTIMIZATION}".split(","))

    def _words(self, command: str, *options: str, **named: object) -> list[str]:
        values = [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return [*shlex.split(command), *(word for option in options for word in shlex.split(option)), *values]

    def prepare(self, *, models: bool = True) -> None:
        """Make the inputs: puppets, a tree of labelled clips and, with `models`, a model of both stages."""
        self.root.mkdir(parents=True, exist_ok=True)
        steps = [self.puppets(self.data)]
        if models:
            steps += [self.autoencoder(self.stage1), self.diffusion(self.model)]
        for words in steps:
            finished = run(words, self.root / "prepare.log")
            if finished.code:
                raise RuntimeError(f"lfdm {shlex.join(words)} failed: {finished.output}")
        rows = [f"{self.clip.relative_to(self.root)}@0,wave,{seed}" for seed in range(NUM_REQUESTS)]
        self.requests.write_text("\n".join(["image,condition,seed", *rows]) + "\n")
        for clip in sorted((self.data / CLIPS_DIR).rglob("*.avi")):
            target = self.tree / clip.stem.rsplit("-", 1)[0] / f"{clip.parent.name}.avi"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, target)
