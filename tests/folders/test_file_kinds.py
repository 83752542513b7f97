"""What the first bytes of a file tell."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lfdm.data.video import encode_video
from lfdm.errors import UserError
from lfdm.folders.file_kinds import describe_file, describe_start, is_heif
from lfdm.folders.model_folder import read_tensors
from lfdm.published.weights import read_checkpoint

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)


def ftyp(*brands: bytes) -> bytes:
    return (16 + 4 * len(brands[1:])).to_bytes(4, "big") + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:]) + bytes(20)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "web page"),
        (b"<html lang=en>", "web page"),
        (b"<?xml version='1.0'?><svg xmlns=", "SVG"),
        (b"path;label;subject\n", "text"),
        ("größer".encode() * 200, "text"),
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"avif", b"avif", b"mif1", b"miaf"), "AVIF"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (ftyp(b"isom", b"isom", b"avc1"), "video"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "video"),
        ((b"G" + bytes(187)) * 3, "MPEG-TS"),
        (b"PK\3\4" + bytes(9), "zip"),
    ],
)
def test_kinds_are_recognised(start: bytes, kind: str) -> None:
    assert kind in (describe_start(start[:512]) or "")


def test_unknown_bytes_have_no_kind() -> None:
    assert describe_start(bytes(range(256))) is None
    assert describe_start("größer".encode("latin-1")) is None


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_our_own_videos_are_videos(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "picture.jpg").write_bytes(encode_video(FRAMES, suffix, fps=8))
    assert (describe_file(tmp_path / "picture.jpg") or "").startswith("a video")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP", "AVIF"])
def test_pictures_are_pictures(name: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(buffer, name)
    assert name in (describe_start(buffer.getvalue()) or "")
    assert not is_heif(buffer.getvalue())


@pytest.mark.parametrize(
    "content", ["version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "<!doctype html><p>"]
)
def test_weights_that_were_not_downloaded_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights"
    path.write_text(content)
    for read in (read_tensors, read_checkpoint):
        with pytest.raises(UserError, match=r"not a file of weights but a (Git LFS pointer|web page)"):
            read(path)
