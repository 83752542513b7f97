"""Hostile pictures and clips: bombs, headers that lie, and playlists that would open other files or addresses."""

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.faults.hostile import FOLDER, TRANSFER, Hostile, clip, picture, sparse
from benchmarks.faults.samples import encode_with
from lfdm.data.video import write_video

Write = Callable[[Path], object]
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ADDRESS = "http://127.0.0.1:{port}/x.ts"


def _bytes(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


# -------------------------------------------------------------------------------------------------------------- PNG


def _chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    stated = len(content) if length is None else length
    return struct.pack(">I", stated) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2) -> Write:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return _bytes(_SIGNATURE + header + b"".join(chunks) + _chunk(b"IEND", b""))


def _zeros(size: int) -> bytes:
    """Compress zeros: about a thousandth of their size."""
    compressor = zlib.compressobj(9)
    blocks = [compressor.compress(bytes(2**20)) for _ in range(size >> 20)]
    return b"".join([*blocks, compressor.compress(bytes(size % 2**20)), compressor.flush()])


def _pixels(width: int, height: int, bytes_per_pixel: int) -> bytes:
    return _chunk(b"IDAT", _zeros(height * (width * bytes_per_pixel + 1)))


def _text_bomb(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 10**8, zip=True)
    Image.new("RGB", (8, 8)).save(path, "PNG", pnginfo=info)


def _control(width: int, height: int, numerator: int, denominator: int, number: int = 0) -> bytes:
    return _chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, numerator, denominator, 0, 0))


def _animated_png(size: int, times: Sequence[tuple[int, int]], *, stated: int | None = None) -> Write:
    """Return a writer of an animated PNG whose frames last these fractions of a second."""
    count = _chunk(b"acTL", struct.pack(">II", len(times) if stated is None else stated, 0))
    data = zlib.compress(bytes(size * (3 * size + 1)))
    parts = [count, _control(size, size, *times[0]), _chunk(b"IDAT", data)]
    for index, time in enumerate(times[1:]):
        parts.append(_control(size, size, *time, number=2 * index + 1))
        parts.append(_chunk(b"fdAT", struct.pack(">I", 2 * index + 2) + data))
    return _png(size, size, *parts)


# -------------------------------------------------------------------------------------------------------------- GIF


def _gif(width: int, height: int, frames: Sequence[tuple[int, int, int]]) -> Write:
    """Return a writer of a GIF of frames (width, height, time), each with the compressed data of one pixel."""
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x80, 0, 0), bytes(6)]
    for frame_width, frame_height, ticks in frames:
        parts.append(b"!\xf9\x04" + struct.pack("<BHBB", 0, ticks, 0, 0))
        parts.append(b"," + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02\x44\x01\x00")
    return _bytes(b"".join([*parts, b";"]))


# ------------------------------------------------------------------------------------------------------------- TIFF


def _tiff(width: int, height: int, data: bytes, *, compression: int = 1, next_page: int = 0) -> Write:
    entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, compression),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(data)),
    ]
    start = 8 + len(data) + len(data) % 2
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return _bytes(b"II*\0" + struct.pack("<I", start) + data + bytes(len(data) % 2) + table + struct.pack("<I", next_page))


def _pages(path: Path) -> None:
    page = Image.new("L", (1, 1))
    page.save(path, "TIFF", save_all=True, append_images=[page] * 3000)


def _webp_canvas(path: Path) -> None:
    """Write an animated WebP whose canvas has 268 megapixels."""
    Image.new("RGB", (4, 4)).save(path, "WEBP", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    data = bytearray(path.read_bytes())
    place = data.index(b"VP8X") + 12
    data[place : place + 6] = (16383).to_bytes(3, "little") * 2
    path.write_bytes(data)


_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(RAN) (w) file closefile showpage\n"
_SVG = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&x;</svg>'

PICTURES = [
    picture("PNG of 10^10 pixels", "png", _png(100_000, 100_000)),
    picture("PNG of 2^62 pixels", "png", _png(2**31 - 1, 2**31 - 1)),
    picture("PNG that inflates to 7500x6600x4", "png", _png(7500, 6600, _pixels(7500, 6600, 4), colour=6), may_work=True),
    picture(
        "PNG that inflates to 16-bit RGBA", "png", _png(7500, 6600, _pixels(7500, 6600, 8), bits=16, colour=6), may_work=True
    ),
    picture("PNG whose data inflate to 1 GB", "png", _png(8, 8, _chunk(b"IDAT", _zeros(2**30))), may_work=True),
    picture("PNG with a text of 100 MB", "png", _text_bomb, may_work=True),
    picture(
        "PNG with a profile of 100 MB",
        "png",
        _png(8, 8, _chunk(b"iCCP", b"a\0\0" + _zeros(10**8)), _pixels(8, 8, 3)),
        may_work=True,
    ),
    picture("PNG with a chunk of 2 GB", "png", _png(8, 8, _chunk(b"IDAT", b"x", 2**31 - 1))),
    picture("GIF of 65535x65535", "gif", _gif(65535, 65535, [(1, 1, 0)])),
    picture("GIF whose first frame is 65535x65535", "gif", _gif(1, 1, [(65535, 65535, 0)])),
    picture("TIFF of 10^10 pixels", "tiff", _tiff(100_000, 100_000, b"x")),
    picture("TIFF strip that inflates to 1 GB", "tiff", _tiff(8, 8, _zeros(2**30), compression=8), may_work=True),
    picture("TIFF whose page follows itself", "tiff", _tiff(1, 1, b"x", next_page=10), may_work=True),
    picture("TIFF of 3000 pages", "tiff", _pages, may_work=True),
    picture("animated WebP of 268 megapixels", "webp", _webp_canvas),
    picture("ICO with a PNG of 10^10 pixels", "ico", lambda path: _icon(path)),
    picture("PPM of 10^10 pixels", "ppm", _bytes(b"P6 100000 100000 255\n")),
    picture(
        "BMP of 2^31 pixels a side",
        "bmp",
        _bytes(b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6)),
    ),
    picture(
        "JPEG 2000 of 2^32 pixels a side",
        "jp2",
        _bytes(b"\xff\x4f\xff\x51\0\x29\0\0" + b"\xff" * 8 + bytes(8) + b"\xff" * 8 + bytes(8) + b"\0\1\7\1\1"),
    ),
    picture("EPS, a program for Ghostscript", "eps", _bytes(_POSTSCRIPT)),
    picture("EPS named .png", "png", _bytes(_POSTSCRIPT)),
    picture("SVG that includes a file", "svg", _bytes(_SVG)),
    picture("PNG of 1 TB of zeros", "png", lambda path: sparse(path, 2**40, _SIGNATURE)),
    picture("GIF of 1 TB of zeros", "gif", lambda path: sparse(path, 2**40, b"GIF89a\x08\0\x08\0\0\0\0")),
]


def _icon(path: Path) -> None:
    _png(100_000, 100_000)(path)
    image = path.read_bytes()
    path.write_bytes(struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(image), 22) + image)


# ------------------------------------------------------------------------------------------------------------ clips


def _frames(num: int = 4, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, size, size, 3), dtype=np.uint8)


def _patched(ending: str, change: Callable[[bytearray], object]) -> Write:
    """Return a writer of a valid clip whose bytes are changed."""

    def write(path: Path) -> None:
        source = path.with_name(f"clip.{ending}")
        data = bytearray(source.read_bytes())
        change(data)
        path.write_bytes(data)

    return write


def _box(name: bytes, offset: int, content: bytes) -> Callable[[bytearray], None]:
    """Return a change of the bytes of a box, `offset` after its name."""

    def change(data: bytearray) -> None:
        start = data.index(name) + 4 + offset
        data[start : start + len(content)] = content

    return change


def _all(*changes: Callable[[bytearray], object]) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        for one in changes:
            one(data)

    return change


def _frame_table(count: int) -> Callable[[bytearray], None]:
    """Declare `count` frames of one byte, all in one chunk and of one length: it takes a table of a few bytes."""
    number = struct.pack(">I", count)
    sizes = _box(b"stsz", 4, struct.pack(">II", 1, count))
    return _all(sizes, _box(b"stts", 8, number), _box(b"stsc", 12, number))


def _external(data: bytearray) -> None:
    """Let the track's data be in another file."""
    start = data.index(b"url ")
    data[start + 4 : start + 8] = bytes(4)


def _nested(depth: int) -> bytes:
    box = b""
    for _ in range(depth):
        box = struct.pack(">I", len(box) + 8) + b"moov" + box
    return struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + box


def _cover_only(path: Path) -> None:
    """Write an mp4 whose only pictures are the cover of an album."""
    import av
    from av.stream import Disposition

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg")
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        stream.disposition = Disposition.attached_pic
        for frame in _frames(1):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def _many_frames(path: Path) -> None:
    """Write 5000 black frames, most of which say only that nothing changes."""
    encode_with(path, np.zeros((1, 16, 16, 3), np.uint8).repeat(5000, axis=0), "mpeg4")


def _duration(value: bytes) -> Callable[[bytearray], None]:
    """Set the duration in a Matroska header."""

    def change(data: bytearray) -> None:
        start = re.search(rb"\x44\x89[\x84\x88]", data)
        assert start is not None
        data[start.end() : start.end() + len(value)] = value

    return change


_PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
_CONCAT = "ffconcat version 1.0\nfile ../secret.mp4\n"
_SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
_DASH = (
    '<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
)
_DASH += "</Representation></AdaptationSet></Period></MPD>"


def _text(text: str) -> Write:
    return lambda path: path.write_text(text.replace("{port}", path.with_name("port").read_text()))


CLIPS = [
    *(
        clip(f"playlist (.{ending}) of a local file", ending, _text(_PLAYLIST.format("../secret.mp4")))
        for ending in ("m3u8", "mp4")
    ),
    clip("playlist of an address", "ts", _text(_PLAYLIST.format(_ADDRESS))),
    clip("playlist of file:///", "mkv", _text(_PLAYLIST.format("file:///etc/passwd"))),
    clip("list of files to concatenate", "avi", _text(_CONCAT)),
    clip("description of a stream (SDP)", "mp4", _text(_SDP)),
    clip("DASH manifest of an address", "webm", _text(_DASH.format(_ADDRESS))),
    clip("mov whose data are another file", "mov", _patched("mov", _external), may_work=True),
    clip("an address as the name", "mp4", lambda path: path.with_name("http:").mkdir()),
    clip("mp4 of 65535x65535", "mp4", _patched("mp4", _box(b"avc1", 24, b"\xff\xff\xff\xff")), may_work=True),
    clip(
        "mp4 of 10^18 seconds", "mp4", _patched("mp4", _box(b"mdhd", 8, struct.pack(">IIII", 0, 0, 1, 2**32 - 1))), may_work=True
    ),
    clip("mov of 2^27 frames in a table of 12 bytes", "mov", _patched("mov", _frame_table(2**27))),
    clip("mov of 2^31 frames in a table of 12 bytes", "mov", _patched("mov", _frame_table(2**31 - 1))),
    clip("boxes nested 10,000 deep", "mp4", _bytes(_nested(10_000))),
    clip("mp4 with nothing but a cover", "mp4", _cover_only, may_work=True),
    clip("Matroska of infinite duration", "mkv", _patched("mkv", _duration(struct.pack(">d", float("inf")))), may_work=True),
    clip("Matroska of 10^300 seconds", "mkv", _patched("mkv", _duration(struct.pack(">d", 1e300))), may_work=True),
    clip("AVI of 2^31 pixels a side", "avi", _patched("avi", _box(b"strf", 8, struct.pack("<II", 2**31 - 1, 2**31 - 1)))),
    clip("MPEG-TS of 10 MB of nothing", "ts", _bytes((b"G" + b"\x1f\xff\x10" + bytes(184)) * 50_000)),
    clip("5000 frames that change nothing", "mp4", _many_frames, may_work=True),
    clip("GIF of 65535x65535", "gif", _gif(65535, 65535, [(1, 1, 2)] * 3)),
    clip("GIF of 10,000 frames of 49 megapixels", "gif", _gif(7000, 7000, [(1, 1, 2)] * 10_000)),
    clip("GIF with pauses of eleven minutes", "gif", _gif(8, 8, [(1, 1, 2), *[(1, 1, 65535)] * 1000])),
    clip("GIF of 300,000 frames", "gif", _gif(8, 8, [(1, 1, 3)] * 300_000)),
    clip("GIF of 1 TB of zeros", "gif", lambda path: sparse(path, 2**40, b"GIF89a\x08\0\x08\0\0\0\0")),
    clip("APNG of 2^31 frames", "png", _animated_png(8, [(1, 8)] * 3, stated=2**31 - 1)),
    clip("APNG whose frames last 15 us and 18 h", "png", _animated_png(8, [(1, 65535), (65535, 1), (65535, 1)])),
    clip("APNG of 20,000 odd durations", "png", _animated_png(2, [(1 + index % 977, 1009) for index in range(20_000)])),
    clip("mp4 of 1 TB of zeros", "mp4", lambda path: sparse(path, 2**40, struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0))),
    Hostile(
        name="endless clip among others",
        kind="clip",
        words=FOLDER,
        write=lambda folder: _gif(8, 8, [(1, 1, 2), *[(1, 1, 65535)] * 5000])(folder / "tree/jump/eve/take.gif"),
        may_work=True,
    ),
    Hostile(
        name="sound of 10^300 seconds",
        kind="clip",
        words=TRANSFER.format("clip.mkv"),
        write=lambda folder: _patched("mkv", _duration(struct.pack(">d", 1e300)))(folder / "clip.mkv") or None,
        may_work=True,
    ),
]


def write_secret(path: Path) -> None:
    """Write the clip that playlists refer to."""
    write_video(path, _frames(), fps=8)
