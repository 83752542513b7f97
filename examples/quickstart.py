# ---
# jupyter:
#   jupytext: {formats: "py:percent"}
#   kernelspec: {name: python3, display_name: Python 3, language: python}
# ---

# %% [markdown]
# # A video from one picture
# The bundled model knows eight actions of drawn puppets. Everything here runs on a CPU in seconds.

# %%
# On Colab: install lfdm. SOURCE may also be the path of a checkout or wheel, or git+https://...
import importlib.util
import subprocess
import sys

SOURCE = "lfdm"
if importlib.util.find_spec("lfdm") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", SOURCE], check=True)

# %%
from lfdm import LatentFlowPipeline
from lfdm.folders.sources import bundled_images

pipe = LatentFlowPipeline.from_pretrained("puppets64")
picture = bundled_images("puppets64")[0]
pipe.condition.labels

# %% [markdown]
# `show()` displays the video next to its flow (colour: direction, strength: length), arrows from where the picture shows a
# place to where it is now, and its occlusion (dark: painted).

# %%
out = pipe(picture, "jump", generator=0)
out.show()

# %% [markdown]
# Half the motion; then a mix of two actions that ends where it began.

# %%
pipe.animate(picture, out.motion, motion_strength=0.5).show(["generated"])

# %%
pipe(picture, {"wave": 0.7, "jump": 0.3}, num_frames=24, loop=True, generator=0).show(["generated"])

# %% [markdown]
# The same motion on another picture.

# %%
pipe.animate(bundled_images("puppets64")[1], out.motion).show()

# %%
out.show(["generated"]).save("jump.gif")
