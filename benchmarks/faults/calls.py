"""Hypothesis strategies of calls of the Python interface, as expressions that `evaluate` runs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

import lfdm
from lfdm.data.images import read_gray, read_image
from lfdm.data.index import read_index
from lfdm.data.video import read_video, video_info, write_video
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline

_PATHS = (
    "'image.png'",
    "Path('image.gif')",
    "'clip.mp4'",
    "'frames'",
    "'missing'",
    "''",
    "'a\\0b'",
    "'~\\0'",
    "'x' * 5000",
    "'/dev/zero'",
)
_PATHS += (
    "'\\ud800'",
    "'~nobody/x'",
    "Path('model')",
    "'data'",
    "'motion.safetensors'",
    "'file:///etc/passwd'",
    "'http://127.0.0.1:9/a.png'",
)
_OBJECTS = (
    "None",
    "3",
    "1.5",
    "b'x'",
    "object()",
    "[]",
    "{}",
    "[None]",
    "set()",
    "lambda: 0",
    "'x'",
    "True",
    "[[[]]]",
    "range(3)",
    "1j",
)
_ARRAYS = (
    *("np.zeros((0, 4, 3), np.uint8)", "np.zeros((8, 8, 3), np.uint8)", "np.full((4, 4, 3), np.nan)", "np.full((4, 4, 3), 2.0)"),
    *(
        "np.zeros((4, 4, 5), np.uint8)",
        "np.zeros((8, 8), bool)",
        "np.zeros((8, 8, 3), complex)",
        "np.zeros((2, 8, 8, 3), np.uint8)",
    ),
    *(
        "np.zeros((8, 8, 3), np.int64)",
        "np.array('x')",
        "np.array([object()])",
        "np.zeros(())",
        "np.zeros((1, 9000, 3), np.uint8)",
    ),
    *(
        "np.broadcast_to(np.uint8(0), (10**6, 10**6, 3))",
        "np.zeros((8, 8, 3), np.float16)",
        "np.ma.masked_array(np.zeros((4, 4, 3)))",
    ),
    *(
        "torch.zeros(3, 0, 4)",
        "torch.full((3, 4, 4), float('nan'))",
        "torch.zeros(3, 4, 4, dtype=torch.int32)",
        "torch.zeros(2, 3, 4, 4)",
    ),
    *("torch.zeros(1).expand(3, 10**6, 10**6)", "torch.zeros(3, 8, 8).to_sparse()", "torch.zeros(3, 8, 8, requires_grad=True)"),
    *(
        "torch.empty(3, 8, 8, device='meta')",
        "torch.zeros(3, 8, 8, dtype=torch.float8_e4m3fn)",
        "torch.zeros(3, 8, 8, dtype=torch.cfloat)",
    ),
    *("torch.zeros(3, 32, 32)", "torch.zeros(3, 32, 32, dtype=torch.uint8)", "torch.zeros(3, 8, 8, dtype=torch.bfloat16)"),
)
_PICTURES = tuple(
    f"Image.new('{mode}', (9, 5))"
    for mode in [
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "LA",
        "PA",
        "RGBX",
        "RGBa",
        "La",
        "I;16",
        "I;16B",
    ]
)
_PICTURES += (
    "Image.new('RGB', (0, 0))",
    "Image.new('RGB', (1, 20000))",
    "Image.new('F', (3, 3), float('nan'))",
    "Image.new('I', (3, 3), -5)",
)
_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "1.5",
    "float('nan')",
    "float('inf')",
    "True",
    "None",
    "'2'",
    "2**63",
    "-(2**70)",
    "10**400",
    "np.int64(2)",
)
_NUMBERS += ("np.float32(1)", "torch.tensor(2)", "[1]", "1e-320", "np.array(2)")
_CONDITIONS = (
    "'wave'",
    "None",
    "['wave', 'jump']",
    "['wave']",
    "{'wave': 0.5, 'jump': 0.5}",
    "{'wave': float('nan')}",
    "{'wave': -1}",
)
_CONDITIONS += (
    "{}",
    "{1: 1}",
    "''",
    "'\\ud800'",
    "'x' * 10**6",
    "torch.zeros(8)",
    "torch.zeros(1, 8)",
    "torch.zeros(0, 8)",
    "torch.zeros(9)",
)
_CONDITIONS += (
    "torch.full((8,), float('nan'))",
    "torch.zeros(8, dtype=torch.int64)",
    "{'wave': 'a'}",
    "[['wave']]",
    "[{'wave': 1.0}, None]",
)
_SEEDS = (
    "0",
    "-1",
    "2**63",
    "2**64",
    "None",
    "'a'",
    "[0]",
    "[0, 1]",
    "[]",
    "True",
    "torch.Generator()",
    "1.5",
    "np.int64(3)",
    "[None]",
)
_OUTPUTS = ("'pil'", "'np'", "'pt'", "'uint8'", "'x'", "None", "3", "['np']")
_ANY_IMAGE = (*_PATHS, *_OBJECTS, *_ARRAYS, *_PICTURES)
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "num_frames": ("2", "3", *_NUMBERS),
    "num_inference_steps": ("1", *_NUMBERS),
    "guidance_scale": _NUMBERS,
    "negative_condition": _CONDITIONS,
    "num_videos": ("1", *_NUMBERS),
    "generator": _SEEDS,
    "output_type": _OUTPUTS,
    "motion_strength": _NUMBERS,
    "motion_mask": _ANY_IMAGE,
    "loop": ("True", "False", "None", "1"),
}


def calls() -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of cases with a call."""
    image, path, number = (st.sampled_from(values) for values in (_ANY_IMAGE, (*_PATHS, *_OBJECTS), _NUMBERS))
    motion = st.sampled_from(["Motion.load('motion.safetensors')", "None", "[]", "'x'"])
    video = st.builds("pipe({}, {}, **{{'num_inference_steps': 1, **{}}})".format, image, _condition(), _keywords())
    expression = st.one_of(
        video,
        video,
        st.builds("pipe.transfer({}, {}, output_type={})".format, image, image, st.sampled_from(_OUTPUTS)),
        st.builds("pipe.animate({}, {}, motion_strength={})".format, image, motion, number),
        st.builds("pipe.embed_condition({})".format, _condition()),
        st.builds("LatentFlowPipeline.from_pretrained({})".format, path),
        st.builds("LatentFlowPipeline.from_pretrained('./model', {}={})".format, st.sampled_from(_OPTIONS), image),
        st.builds("lfdm.LatentFlowAutoencoder.from_pretrained({})".format, path),
        st.builds("read_image({})".format, image),
        st.builds("read_gray({})".format, st.sampled_from([*_PATHS, *_PICTURES])),
        st.builds(
            "{}({})".format, st.sampled_from(["read_video", "video_info", "read_index", "Motion.load"]), st.sampled_from(_PATHS)
        ),
        st.builds("read_video('clip.mp4', max_frames={})".format, number),
        st.builds(
            "write_video('x.{}', {}, fps={})".format, st.sampled_from(["mp4", "gif", "webp"]), st.sampled_from(_ARRAYS), number
        ),
        st.builds("Motion.load('motion.safetensors').scaled({})".format, number),
    )
    return expression.map(lambda text: {"call": text})


_OPTIONS = ("dtype", "torch_dtype", "device", "variant", "use_safetensors", "revision", "subfolder", "local_files_only")


def _condition() -> st.SearchStrategy[str]:
    return st.sampled_from([*_CONDITIONS, *_OBJECTS])


def _keywords() -> st.SearchStrategy[str]:
    optional = {name: st.sampled_from(values) for name, values in _PARAMETERS.items()}
    chosen = st.lists(st.sampled_from(sorted(optional)), max_size=3, unique=True)
    keywords = chosen.flatmap(lambda names: st.fixed_dictionaries({name: optional[name] for name in names}))
    return keywords.map(lambda given: f"dict({', '.join(f'{name}={value}' for name, value in given.items())})")


def evaluate(expression: str, pipe: LatentFlowPipeline) -> object:
    """Run an expression of `calls`."""
    names = {"np": np, "torch": torch, "Image": Image, "Path": Path, "lfdm": lfdm, "pipe": pipe, "Motion": Motion}
    functions = (read_image, read_gray, read_video, video_info, read_index, write_video)
    names |= {"LatentFlowPipeline": LatentFlowPipeline, **{function.__name__: function for function in functions}}
    return eval(expression, names)
