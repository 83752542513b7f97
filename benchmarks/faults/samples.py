"""Valid files of every kind that lfdm reads, small, for the campaigns to damage. Shapes: frames (t, H, W, 3) uint8."""

import json
import os
import shutil
import struct
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from lfdm.config.models import AutoencoderConfig, UNetConfig
from lfdm.config.predictors import DenseConfig
from lfdm.config.presets import FLOW64, Preset
from lfdm.data.corpora.natops import LABELS as NATOPS_LABELS
from lfdm.data.index import read_index, write_index
from lfdm.data.puppets.data_set import write_puppets
from lfdm.data.sprites import SHEET_SIZE
from lfdm.data.video import write_video
from lfdm.motion.motion import Motion
from lfdm.pipeline.pipeline import LatentFlowPipeline

LABELS = ("jump", "wave")
SIZE = 32
NUM_FRAMES = 4
IMAGES = ("png", "jpg", "webp", "gif", "tiff", "bmp", "ico", "tga", "ppm", "jp2", "avif", "dds")
"""Endings of the still pictures `image.*`, in formats of Pillow."""
ODD_IMAGES = ("gray16.png", "palette.png", "profile.png", "rotated.jpg", "cmyk.jpg", "float.tiff", "alpha.webp")
CLIPS = ("mp4", "webm", "avi", "gif", "webp", "apng", "mov", "mkv", "mpg", "ts", "flv", "wmv", "ogv")
"""Endings of the clips `clip.*`."""
_MUXERS = {"mov": "mpeg4", "mkv": "libx264", "mpg": "mpeg1video", "ts": "mpeg2video", "flv": "flv", "wmv": "wmv2", "ogv": "ffv1"}
"""Encoder by the ending of clips that lfdm reads and does not write; ogv is Matroska under another name."""
TINY_PRESET = replace(
    FLOW64,
    image_size=SIZE,
    num_frames=NUM_FRAMES,
    autoencoder=AutoencoderConfig(
        channels=8,
        max_channels=8,
        num_downs=1,
        num_res_blocks=1,
        predictor=DenseConfig(channels=(8, 8, 8, 8), match_channels=8),
        corners=False,
    ),
    unet=UNetConfig(latent_channels=8, condition_dim=8, dim=8, channel_multipliers=(1, 2), num_heads=1, head_dim=8),
)
"""A model that makes a video in a tenth of a second."""


def write_samples(folder: Path, preset: Preset = TINY_PRESET) -> None:
    """Write all samples into a new folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    frames = _moving_square(rng)
    _write_images(folder, frames[0])
    _write_clips(folder, frames)
    LatentFlowPipeline.from_preset(preset, LABELS).save_pretrained(folder / "model")
    flow, occlusion = (
        0.1 * torch.randn(1, 2, NUM_FRAMES, SIZE // 2, SIZE // 2),
        torch.rand(1, 1, NUM_FRAMES, SIZE // 2, SIZE // 2),
    )
    Motion(flow, occlusion).save(folder / "motion.safetensors")
    torch.save({"diffusion": {"null_cond_emb": torch.zeros(1, 4)}, "epoch": 3}, folder / "flowdiff.pth")
    torch.save({"a": torch.zeros(3)}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    write_puppets(folder / "data", num_subjects=3, num_takes=1, size=SIZE, num_frames=NUM_FRAMES, num_workers=1)
    write_index(folder / "data", [record for record in read_index(folder / "data") if record.label in LABELS])
    for path in (folder / "data").rglob("*"):
        os.utime(path, (0, 0))  # a part of the names of caches, which must be the same in every run
    _write_trees(folder, frames)
    (folder / "labels.txt").write_text("wave\njump\n")


def _moving_square(rng: np.random.Generator) -> np.ndarray:
    frames = np.repeat(rng.integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8), NUM_FRAMES, axis=0)
    for index, frame in enumerate(frames):
        frame[8:20, 4 + 2 * index : 16 + 2 * index] = (200, 30, 90)
    return frames


def _write_images(folder: Path, frame: np.ndarray) -> None:
    image = Image.fromarray(frame)
    for ending in IMAGES:
        image.save(folder / f"image.{ending}")
    Image.fromarray(frame[..., 0]).save(folder / "mask.png")
    Image.fromarray(frame[..., 0].astype(np.uint16) * 257).save(folder / "gray16.png")
    image.quantize(16).save(folder / "palette.png")
    image.save(folder / "profile.png", icc_profile=_profile())
    exif = Image.Exif()
    exif[0x112] = 6
    image.save(folder / "rotated.jpg", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(frame[..., 0].astype(np.float32) / 255).save(folder / "float.tiff")
    image.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    image.save(folder / "pages.tiff", save_all=True, append_images=[image] * 3, compression="tiff_deflate")


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _write_clips(folder: Path, frames: np.ndarray) -> None:
    for ending in CLIPS:
        path = folder / f"clip.{ending}"
        if ending in _MUXERS:
            encode_with(path, frames, _MUXERS[ending])
        else:
            write_video(path, frames, fps=8)
    write_video(folder / "frames", frames, fps=8)


def encode_with(path: Path, frames: np.ndarray, codec: str, *, muxer: str | None = None, rate: int = 24) -> None:
    """Encode a clip with any encoder of FFmpeg; the ending of `path` decides the format unless `muxer` names it."""
    import av
    from av.video.stream import VideoStream

    muxer = muxer or ("matroska" if path.suffix == ".ogv" else None)
    with av.open(str(path), "w", format=muxer) as file:
        stream = cast(VideoStream, file.add_stream(codec, rate=rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())


def _write_trees(folder: Path, frames: np.ndarray) -> None:
    """Write the sources of the data commands: folders of clips, the three corpora and sprite sheets."""
    clips = {(label, subject): "mp4" if subject == "ann" else "webp" for label, subject in product(LABELS, ("ann", "bob"))}
    clips[LABELS[0], "eve"] = "gif"
    for (label, subject), ending in clips.items():
        path = folder / "tree" / label / subject / f"take.{ending}"
        path.parent.mkdir(parents=True)
        shutil.copy(folder / f"clip.{ending}", path)
    rows = [f"{label}/{subject}/take.{ending},{label} it,{subject}" for (label, subject), ending in clips.items()]
    (folder / "table.csv").write_text("\n".join(["path,label,subject", *rows]) + "\n")
    (folder / "table.tsv").write_text("\n".join(["path,label,subject", *rows]).replace(",", "\t") + "\n")
    write_video(folder / "mug" / "001" / "anger" / "take000", frames, fps=8)
    for path in ("mhad/RGB/a1_s1_t1_color.avi", "natops/gesture01/g01s03.avi"):
        shape = (480, 640) if path.startswith("mhad") else (240, 320)
        big = np.zeros((NUM_FRAMES, *shape, 3), np.uint8)
        write_video(folder / path, big, fps=8)
    (folder / "mhad" / "Depth").mkdir()
    (folder / "mhad" / "Depth" / "a1_s1_t1_depth.mat").write_bytes(struct.pack("<I", 0))
    lines = ["// Subject 3", *(f"{label},{label},{label}\n1:1,3" for label in map(str, range(len(NATOPS_LABELS))))]
    (folder / "natops" / "segmentation.txt").write_text("\n".join(lines) + "\n")
    for sex in ("male", "female"):
        sheet = folder / "sheets" / "body" / sex / "light.png"
        sheet.parent.mkdir(parents=True)
        Image.new("RGBA", SHEET_SIZE, (90, 60, 30, 255)).save(sheet)


def read_safetensors_header(data: bytes) -> tuple[dict[str, object], bytes]:
    """Split a safetensors file into its JSON header and its data."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(header: object, tensors: bytes) -> bytes:
    """Return a safetensors file of any header, which may contradict the data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors
