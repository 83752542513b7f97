# ---
# jupyter:
#   jupytext: {formats: "py:percent"}
#   kernelspec: {name: python3, display_name: Python 3, language: python}
# ---

# %% [markdown]
# # Train on your own clips, in miniature
# Clips lie in `<label>/<person>/<file>`. Here a few drawn ones stand in for yours: set `CLIPS` to your folder and leave out the
# cell that draws.
# `STEPS` is far too small for good videos: the preset's own numbers are in `FLOW64`.

# %%
# On Colab: install lfdm. SOURCE may also be the path of a checkout or wheel, or git+https://...
import importlib.util
import subprocess
import sys

SOURCE = "lfdm"
if importlib.util.find_spec("lfdm") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", SOURCE], check=True)

# %%
from dataclasses import replace
from pathlib import Path

from lfdm import LatentFlowPipeline
from lfdm.config.presets import FLOW64
from lfdm.config.training import OptimizationConfig, with_num_steps
from lfdm.data.corpora.folder import write_folder
from lfdm.data.progress import TqdmBars
from lfdm.data.puppets.data_set import render_clip
from lfdm.data.video import write_video
from lfdm.training.reports import show_steps
from lfdm.training.stage1 import train_autoencoder
from lfdm.training.stage2 import train_diffusion

CLIPS, DATA, RUNS, STEPS = Path("my_clips"), Path("data"), Path("runs"), 10
bars = TqdmBars()

# %%
for number, person in enumerate(("anna", "ben", "cleo")):
    for label in ("wave", "jump"):
        folder = CLIPS / label / person
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / "1.mp4", render_clip(number, label, 0, num_frames=18, truth=False).frames, fps=8)

# %% [markdown]
# ## The data set

# %%
report = write_folder(CLIPS, DATA, short_side=64, test_fraction=0.34)
print(report.num_clips("train"), "training clips,", report.num_clips("test"), "test clips;", *report.notes)

# %% [markdown]
# ## Both trainings
# A stopped cell continues when it is run again.


# %%
def shorter(optimization: OptimizationConfig) -> OptimizationConfig:
    return replace(with_num_steps(optimization, STEPS), batch_size=2, num_workers=0, log_steps=1)


stage1, stage2 = FLOW64.autoencoder_training, FLOW64.diffusion_training
preset = replace(
    FLOW64,
    autoencoder_training=replace(stage1, optimization=shorter(stage1.optimization)),
    diffusion_training=replace(stage2, optimization=shorter(stage2.optimization)),
)
train_autoencoder(preset, DATA, RUNS / "stage1", init="puppets64", progress=bars, report=show_steps(bars))

# %%
train_diffusion(preset, DATA, RUNS / "stage1", RUNS / "stage2", progress=bars, report=show_steps(bars))

# %% [markdown]
# ## A video

# %%
pipe = LatentFlowPipeline.from_pretrained(RUNS / "stage2")
picture = "my_clips/wave/anna/1.mp4@0"  # the first frame of a clip; any picture file works
pipe(picture, "wave", generator=0).show()
