# ---
# jupyter:
#   jupytext: {formats: "py:percent"}
#   kernelspec: {name: python3, display_name: Python 3, language: python}
# ---

# %% [markdown]
# # Read an evaluation
# An evaluation generates a video for every held-out clip and measures it. This one has a handful of clips, to be quick: its
# figures are noise.

# %%
# On Colab: install lfdm. SOURCE may also be the path of a checkout or wheel, or git+https://...
import importlib.util
import subprocess
import sys

SOURCE = "lfdm"
if importlib.util.find_spec("lfdm") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", SOURCE], check=True)

# %%
from pathlib import Path

from lfdm.data.progress import TqdmBars
from lfdm.data.puppets.data_set import write_puppets
from lfdm.evaluation.protocol import evaluate
from lfdm.evaluation.settings import ClassifierTraining, EvaluationConfig

write_puppets(Path("data/puppets"), num_subjects=6, num_takes=1, test_fraction=0.34, num_workers=1)
judges = ClassifierTraining(num_steps=10, batch_size=8)  # too few to recognise much; the defaults are 100 and 300 steps
config = EvaluationConfig(num_clips=4, num_diversity_clips=2, classifier=judges, frame_network=judges)
results = evaluate("puppets64", "data/puppets", "runs/evaluation", config, progress=TqdmBars())

# %% [markdown]
# Every figure has its N, and most have a reference. What could not be measured is listed with the reason.

# %%
generation = results["generation"]
for name in ("action_accuracy", "identity", "motion_amount", "temporal_smoothness"):
    value, num = generation[name]["value"], generation[name]["num_clips"]
    print(f"{name:20} {'not measurable' if value is None else f'{value:.3f}'}   N = {num}")
results["left_out"]

# %% [markdown]
# Rows of the contact sheet: real clips, and the videos generated from their first frames.

# %%
from PIL import Image

Image.open("runs/evaluation/contact-sheet.png")

# %% [markdown]
# `runs/evaluation/report.html` shows all figures on one page.
