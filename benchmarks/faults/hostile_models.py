"""Hostile model folders, checkpoints and weights: code in pickles, bombs in zip files, JSON and safetensors."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.faults.commands import EVALUATE, PREPARATION, STAGE1, VALID
from benchmarks.faults.hostile import ESCAPE, GENERATE, RAN, SECRET, Hostile, sparse
from benchmarks.faults.samples import join_safetensors, read_safetensors_header
from lfdm.data.index import read_index
from lfdm.data.truth import truth_path

_IMPORT = VALID["import"].replace("flowdiff.pth", "hostile.pth")
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_NEW_STAGE1 = VALID["train autoencoder flow64"]
_NULL = "null_cond_emb"
_HUGE_SHAPE = json.dumps({"shape": [3, 2**62, 1], "clips": []})


class _Code:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {RAN}",)


def _pickled(path: Path, *, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps({"diffusion": _Code()}, protocol=protocol))


def _saved(path: Path, *, new: bool = True) -> None:
    torch.save({"diffusion": _Code(), "generator": _Code()}, path, _use_new_zipfile_serialization=new)


def _object_arrays(path: Path) -> None:
    _save_objects(path, ("flow", "drift", "visible", "interior", "figure"))


def _save_objects(path: Path, names: Iterable[str]) -> None:
    arrays: dict[str, Any] = {name: np.array([_Code()], dtype=object) for name in names}
    np.savez(path, **arrays)


def _pickled_batches(folder: Path) -> None:
    paths = sorted((folder / "results" / "cache").rglob("*.npz"))
    for path in paths:
        with np.load(path) as arrays:
            names = list(arrays)
        _save_objects(path, names)


def _truth(folder: Path, write: Callable[[Path], object]) -> None:
    """Write the truth of all test clips."""
    first, *others = [
        truth_path(folder / "data" / record.path) for record in read_index(folder / "data") if record.split == "test"
    ]
    write(first)
    for path in others:
        shutil.copy(first, path)


def _text_encoder(folder: Path, *, weights: str) -> None:
    """Make the model embed text by a folder with its own code, or with pickled weights."""
    encoder = folder / "encoder"
    encoder.mkdir()
    (encoder / "code.py").write_text(f"import os\nos.system('touch {RAN}')\n")
    auto = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
    content = {"model_type": "evil" if weights == "code" else "bert", "auto_map": auto, "vocab_size": 5, "hidden_size": 8}
    (encoder / "config.json").write_text(json.dumps(content))
    (encoder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "auto_map": auto}))
    (encoder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nwave\n")
    _saved(encoder / "pytorch_model.bin")
    _change(folder / "model/condition/config.json", text_encoder=str(encoder))


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _index(**values: Any) -> Callable[[Path], None]:
    return lambda folder: _change(folder / "model/model_index.json", **values)


def _config(part: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: _change(folder / "model" / part / "config.json", **values)


def _scheduler(name: str, **values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        _index(scheduler=["diffusers", name])(folder)
        (folder / "model/scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name, **values}))

    return write


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _zip_bomb(path: Path, *, entries: int = 1) -> None:
    """Write a checkpoint whose one small record decompresses to 4 GB, or that claims the same bytes in many records."""
    torch.save({"diffusion": {_NULL: torch.zeros(16)}}, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            if not name.endswith("data/0"):
                archive.writestr(name, content)
                continue
            for index in range(entries):
                target = archive.open(zipfile.ZipInfo(name if not index else f"{name}-{index}"), "w", force_zip64=True)
                target._compressor = zipfile._get_compressor(zipfile.ZIP_DEFLATED, 9)  # type: ignore[attr-defined]
                target._zinfo.compress_type = zipfile.ZIP_DEFLATED  # type: ignore[attr-defined]
                with target:
                    for _ in range(4096 // entries):
                        target.write(bytes(2**20))


def _big_array(path: Path, size: int = 2**32) -> None:
    """Write an .npz whose arrays decompress to `size` bytes each."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (size // 4,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("flow", "drift", "visible", "interior", "figure"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(header.getvalue())
                for _ in range(size // 2**24 if name == "flow" else 0):
                    file.write(bytes(2**24))


def _traversal(path: Path) -> None:
    _saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr("/tmp/escaped", "x")


def _tensors(**tensors: torch.Tensor) -> Callable[[Path], object]:
    return lambda folder: torch.save({"diffusion": tensors}, folder / "hostile.pth")


def _safetensors(path: str, change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> Callable[[Path], None]:
    """Return a function that changes the header of a safetensors file, whose entries are name: dtype, shape, offsets."""

    def write(folder: Path) -> None:
        header, tensors = read_safetensors_header((folder / path).read_bytes())
        change(header)
        (folder / path).write_bytes(join_safetensors(header, tensors if data is None else data))

    return write


def _overlap(header: dict[str, Any]) -> None:
    names = [name for name in header if name != "__metadata__"]
    for name in names:
        header[name] = header[names[0]]


def _huge_shape(header: dict[str, Any]) -> None:
    for name in set(header) - {"__metadata__"}:
        header[name]["shape"] = [2**32, 2**32, 4]


def _sparse_motion(folder: Path, *, frames: int = 10**7) -> None:
    """Write a valid motion of zeros that takes no space on the disk and 200 GB in memory."""
    size = 16 * 16 * 4 * frames
    entries = {
        "flow": {"dtype": "F32", "shape": [1, 2, frames, 16, 16], "data_offsets": [0, 2 * size]},
        "occlusion": {"dtype": "F32", "shape": [1, 1, frames, 16, 16], "data_offsets": [2 * size, 3 * size]},
    }
    metadata = {"format": "lfdm-motion-1", "corners": "false", "shape": f"1 {frames} 16 16"}
    start = join_safetensors({"__metadata__": metadata, **entries}, b"")
    sparse(folder / "motion.safetensors", len(start) + 3 * size, start)


def _sparse_weights(folder: Path) -> None:
    entries = {"table": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}
    start = join_safetensors(entries, b"")
    sparse(folder / "model/condition" / _WEIGHTS, len(start) + 2**36, start)


def _cases() -> list[Hostile]:
    def make(kind: str, name: str, words: str, write: Callable[[Path], object], *, may_work: bool = False) -> Hostile:
        return Hostile(name=name, kind=kind, words=words, write=write, may_work=may_work)

    reuse = "generate image.png --reuse-motion motion.safetensors --model ./model"
    perceptual = f"{_NEW_STAGE1} --autoencoder-training.perceptual-weight 1"
    trusted = f"{EVALUATE} --model ./model --out new --extractors"
    encoded = GENERATE.replace("wave", "swim")
    big = {"channels": 8192, "max_channels": 8192, "num_res_blocks": 100}
    wide = {"dim": 8192, "channel_multipliers": [1, 8, 64], "num_resnets": 50, "num_heads": 100, "head_dim": 8192}
    return [
        make("code", "pickle as zip checkpoint", _IMPORT, lambda f: _saved(f / "hostile.pth")),
        make("code", "pickle as old checkpoint", _IMPORT, lambda f: _saved(f / "hostile.pth", new=False)),
        make("code", "plain pickle, protocol 2", _IMPORT, lambda f: _pickled(f / "hostile.pth")),
        make("code", "plain pickle, protocol 5", _IMPORT, lambda f: _pickled(f / "hostile.pth", protocol=5)),
        make("code", "pickle as .ckpt", _IMPORT.replace(".pth", ".ckpt"), lambda f: _saved(f / "hostile.ckpt")),
        make(
            "code",
            "pickle as auto-encoder",
            "import --preset mug128 --autoencoder hostile.pt --out new",
            lambda f: _saved(f / "hostile.pt"),
        ),
        make("code", "pickle named .safetensors", GENERATE, lambda f: _pickled(f / "model/unet" / _WEIGHTS)),
        make(
            "code",
            "model with a .bin only",
            GENERATE,
            lambda f: _saved((f / "model/unet" / _WEIGHTS).rename(f / "model/unet/x.bin")),
        ),
        make("code", "pickle as motion", reuse, lambda f: _pickled(f / "motion.safetensors")),
        make(
            "code",
            "pickle as perceptual network",
            f"{perceptual} --autoencoder-training.perceptual-weights-path hostile.pth",
            lambda f: _saved(f / "hostile.pth"),
        ),
        make("code", "pickle as I3D", f"{trusted} i3d:hostile.pth", lambda f: _saved(f / "hostile.pth")),
        make(
            "code",
            "TorchScript program",
            f"{trusted} i3d-torchscript:hostile.pt",
            lambda f: torch.jit.save(torch.jit.script(torch.nn.ReLU()), f / "hostile.pt"),
        ),
        make("code", "pickled arrays in results", PREPARATION[2], _pickled_batches),
        make("code", "pickled arrays as truth", VALID["evaluate"], lambda f: _truth(f, _object_arrays)),
        make("code", "text encoder with code", encoded, lambda f: _text_encoder(f, weights="code")),
        make("code", "text encoder with pickled weights", encoded, lambda f: _text_encoder(f, weights="pickle")),
        make("code", "os.system as a component", GENERATE, _index(unet=["os", "system"])),
        make("code", "subprocess.Popen as scheduler", GENERATE, _index(scheduler=["subprocess", "Popen"])),
        make("code", "a class of diffusers as component", GENERATE, _index(autoencoder=["diffusers", "AutoencoderKL"])),
        make("code", "a module's path as scheduler", GENERATE, _scheduler("../../evil.Scheduler")),
        make("zip", "deflated record of 4 GB", _IMPORT, lambda f: _zip_bomb(f / "hostile.pth")),
        make("zip", "a hundred deflated records", _IMPORT, lambda f: _zip_bomb(f / "hostile.pth", entries=100)),
        make("zip", "entries outside of the archive", _IMPORT, lambda f: _traversal(f / "hostile.pth")),
        make("zip", "truth that inflates to 4 GB", VALID["evaluate"], lambda f: _truth(f, _big_array)),
        make(
            "zip",
            "results that inflate to 4 GB",
            PREPARATION[2],
            lambda f: [_big_array(path) for path in sorted((f / "results/cache").rglob("*.npz"))[:1]],
        ),
        make("checkpoint", "expanded tensor of 10^12 numbers", _IMPORT, _tensors(**{_NULL: torch.zeros(1).expand(10**6, 10**6)})),
        make(
            "checkpoint",
            "expanded rotary frequencies",
            _IMPORT,
            _tensors(**{_NULL: torch.zeros(1, 4), "rotary_emb.freqs": torch.zeros(1).expand(10**10)}),
        ),
        make("checkpoint", "tensors without data", _IMPORT, _tensors(**{_NULL: torch.empty(1, 768, device="meta")})),
        make("checkpoint", "sparse tensors", _IMPORT, _tensors(**{_NULL: torch.zeros(1, 768).to_sparse()})),
        make("JSON", "a million brackets", GENERATE, _text("model/model_index.json", "[" * 10**6)),
        make("JSON", "a number of a million digits", GENERATE, _text("model/unet/config.json", '{"dim": ' + "9" * 10**6 + "}")),
        make("JSON", "a sparse file of 1 TB", GENERATE, lambda f: sparse(f / "model/unet/config.json", 2**40, b"{")),
        make(
            "JSON",
            "a hundred thousand labels",
            GENERATE,
            _config("condition", labels=[f"{SECRET[:3]}{i}" for i in range(100_000)]),
        ),
        make("JSON", "escape codes as label", "info --model ./model", _config("condition", labels=["jump", f"wave{ESCAPE}"])),
        make(
            "JSON",
            "a label of two lines",
            "info --model ./model",
            _config("condition", labels=["jump", "wave\nlfdm: all is well"]),
        ),
        make(
            "JSON",
            "infinite settings",
            GENERATE,
            _text("model/scheduler/scheduler_config.json", '{"_class_name": "MotionScheduler", "shift": 1e999}'),
        ),
        make("JSON", "pictures of 2^30 pixels a side", GENERATE, _index(image_size=2**30)),
        make("JSON", "a clip of 2^62 frames", GENERATE, _index(num_frames=2**62)),
        make("JSON", "schedule of 10^11 steps", GENERATE, _scheduler("DDIMScheduler", num_train_timesteps=10**11)),
        make("JSON", "schedule of 10^9 steps", GENERATE, _scheduler("DDPMScheduler", num_train_timesteps=10**9)),
        make("JSON", "auto-encoder of 400 GB", GENERATE, _config("autoencoder", **big)),
        make("JSON", "denoiser of terabytes", GENERATE, _config("unet", **wide)),
        make(
            "JSON",
            "tokens of terabytes",
            GENERATE,
            _config("condition", pooling="attention", text_encoder="x", num_tokens=10**12),
        ),
        make(
            "JSON",
            "depth in a run's state",
            STAGE1,
            lambda f: [p.write_text("[" * 10**6) for p in f.glob("stage1/**/state.json")],
        ),
        make(
            "JSON",
            "cached motion of 2^62 rows",
            VALID["train diffusion flow64"],
            lambda f: [
                p.write_text('{"shape": [3, 4611686018427387904, 1], "clips": []}') for p in f.glob("data/.cache/*/shape.json")
            ],
            may_work=True,
        ),
        make(
            "safetensors",
            "header of 2^63 bytes",
            GENERATE,
            lambda f: (f / "model/unet" / _WEIGHTS).write_bytes(struct.pack("<Q", 2**63)),
        ),
        make("safetensors", "overlapping tensors", GENERATE, _safetensors(f"model/unet/{_WEIGHTS}", _overlap)),
        make("safetensors", "shapes beyond 2^64", GENERATE, _safetensors(f"model/unet/{_WEIGHTS}", _huge_shape)),
        make("safetensors", "overlapping motion", reuse, _safetensors("motion.safetensors", _overlap)),
        make("safetensors", "shapes beyond 2^64 in a motion", reuse, _safetensors("motion.safetensors", _huge_shape)),
        make("safetensors", "sparse motion of 30 GB", reuse, _sparse_motion),
        make("safetensors", "sparse weights of 64 GB", GENERATE, _sparse_weights),
        make(
            "safetensors",
            "a million tensors",
            GENERATE,
            lambda f: save_file({f"t{i}": torch.zeros(0) for i in range(100_000)}, f / "model/unet" / _WEIGHTS),
        ),
    ]


MODELS = _cases()
