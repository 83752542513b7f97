"""Tell users what a file really is, from its first bytes, when it is not what its name promises."""

import codecs
from pathlib import Path

from lfdm.errors import UserError

_NUM_BYTES = 512
_LFS_POINTER = b"version https://git-lfs"
_LFS_ADVICE = "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
_WEB_PAGE = "a web page (HTML); download the file itself"

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"8BPS", "a Photoshop file"),
    (b"\x1aE\xdf\xa3", "a video (WebM or Matroska)"),
    (b"FLV\1", "a video (FLV)"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (WMV)"),
    (b"\0\0\1\xba", "a video (MPEG)"),
    (b"\0\0\1\xb3", "a video (MPEG)"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "a sound file (MP3)"),
    (b"fLaC", "a sound file (FLAC)"),
    (b"%PDF", "a PDF"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"glTF", "a glTF model"),
    (b"\x80\2", "a Python pickle"),
    (b"\x80\3", "a Python pickle"),
    (b"\x80\4", "a Python pickle"),
    (b"\x80\5", "a Python pickle"),
)
_RIFF = {b"WEBP": "a WebP picture", b"AVI ": "a video (AVI)", b"WAVE": "a sound file (WAV)"}
_BOX_KINDS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""First boxes of MP4 and QuickTime files."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2")
_TS_PACKET = 188
"""Bytes of a packet of an MPEG transport stream; each begins with the letter G."""


def describe_file(path: Path) -> str | None:
    """Return a noun phrase for the content of a file, such as "a video (MP4 or QuickTime)"; None where it is not recognised.

    Raises OSError for a file that cannot be read.
    """
    with path.open("rb") as file:
        return describe_start(file.read(_NUM_BYTES))


def check_downloaded(path: Path) -> None:
    """Raise UserError where a file of weights is a Git LFS pointer or a web page in its place."""
    kind = describe_file(path)
    if kind is not None and kind.startswith((_LFS_ADVICE, _WEB_PAGE)):
        raise UserError(f"{path}: not a file of weights but {kind}")


def describe_start(start: bytes) -> str | None:
    """Return a noun phrase for a file with these first bytes (some 500 are enough); None where they are not recognised."""
    if not start:
        return "an empty file"
    if start.startswith(_LFS_POINTER):
        return _LFS_ADVICE
    if start.startswith(b"RIFF"):
        return _RIFF.get(start[8:12])
    if start[4:8] in _BOX_KINDS:
        return _describe_boxes(start)
    if start[:1] == b"G" and start[_TS_PACKET : _TS_PACKET + 1] == b"G":
        return "a video (MPEG-TS)"
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    return _describe_text(start[:_NUM_BYTES])


def is_heif(start: bytes) -> bool:
    """Return whether a file with these first bytes is a HEIC or HEIF picture; AVIF is a format of its own."""
    brands = _brands(start)
    return b"avif" not in brands and any(brand in _HEIF_BRANDS for brand in brands)


def _brands(start: bytes) -> list[bytes]:
    """List the brands of a file of boxes, the major one first."""
    if start[4:8] != b"ftyp":
        return []
    box = start[: int.from_bytes(start[:4], "big")]
    return [box[8:12], *(box[at : at + 4] for at in range(16, len(box), 4))]


def _describe_boxes(start: bytes) -> str:
    if is_heif(start):
        return "a HEIC picture"
    if any(brand in (b"avif", b"avis") for brand in _brands(start)):
        return "an AVIF picture"
    return "a video (MP4 or QuickTime)"


def _describe_text(start: bytes) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return _WEB_PAGE
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "an SVG drawing"
    if b"\0" in start or any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in start):
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # a letter of several bytes may be cut at the end
    except UnicodeDecodeError:
        return None
    return "text"
