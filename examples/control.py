# ---
# jupyter:
#   jupytext: {formats: "py:percent"}
#   kernelspec: {name: python3, display_name: Python 3, language: python}
# ---

# %% [markdown]
# # Control
# Two actions in one video, a part that stays, the last pose, and where a point goes. Everything here runs on a CPU in seconds.

# %%
# On Colab: install lfdm. SOURCE may also be the path of a checkout or wheel, or git+https://...
import importlib.util
import subprocess
import sys

SOURCE = "lfdm"
if importlib.util.find_spec("lfdm") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", SOURCE], check=True)

# %%
from PIL import Image

from lfdm import LatentFlowPipeline
from lfdm.config.control import Control, Drag, LabelSpan, PartStrength
from lfdm.folders.sources import bundled_images

pipe = LatentFlowPipeline.from_pretrained("puppets64")
picture = bundled_images("puppets64")[0]

# %% [markdown]
# Labels have times from 0 to 1; the arrows show where each place of the picture goes.

# %%
spans = (LabelSpan(label="wave", start=0, end=0.5), LabelSpan(label="jump", start=0.5, end=1))
pipe(picture, control=Control(labels=spans), generator=0).show(["generated", "flow", "arrows"])

# %% [markdown]
# A strength takes the motion of one part away, here that of the arm under a mask, or makes it larger.

# %%
arm = Image.new("L", (64, 64), "black")
arm.paste("white", (34, 20, 64, 50))
still = Control(strengths=(PartStrength(value=0, mask=arm),))
raised = pipe(picture, "raise arms", generator=0)
pipe(picture, "raise arms", control=still, generator=0).show(["generated", "flow", "arrows"])

# %% [markdown]
# The last frame takes the pose of a picture: this video waves and ends with both arms raised.

# %%
pose = raised.frames[0][-1]
assert isinstance(pose, Image.Image)
pipe(picture, "wave", control=Control(end_image=pose), generator=0).show(["generated", "arrows"])

# %% [markdown]
# Drags and pins need a network that was trained with `--unet.track-inputs`, as the second bundled model was. Other models say so.

# %%
drag = Drag(source=(42, 41), path=((1.0, 54, 32),))
dragged = LatentFlowPipeline.from_pretrained("puppets64-control")
dragged(picture, control=Control(drags=(drag,), pins=((27, 58),)), generator=0).show(["generated", "arrows"])
