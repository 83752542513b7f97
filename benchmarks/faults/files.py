"""Hostile files: code, bombs, references to other files and addresses, links, and names that change a terminal."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

from benchmarks.faults.campaign import Campaign
from benchmarks.faults.hostile import ESCAPE, RAN, SECRET, Hostile
from benchmarks.faults.hostile_folders import FOLDERS
from benchmarks.faults.hostile_media import CLIPS, PICTURES, write_secret
from benchmarks.faults.hostile_models import MODELS
from benchmarks.faults.inputs import prepare
from benchmarks.faults.trial import MAX_MEGABYTES, MAX_SECONDS, Ending, run_words

HOSTILE = (*MODELS, *PICTURES, *CLIPS, *FOLDERS)
MAX_LINE = 5000
"""Most characters of a refusal."""


def run(only: str = "") -> Campaign:
    """Try hostile files.

    Args:
        only: Part of the kinds and names of the files to try; by default all.
    """
    campaign = Campaign(
        name="files",
        promise=(
            f"A hostile file is refused in one line, or used within {MAX_SECONDS} s and {MAX_MEGABYTES} MB; it runs no code, and "
            "opens no other file and no address."
        ),
        aim="0 that are not",
        notes=[
            "No fonts are read, so that there are none among the files.",
            "Links out of a folder are followed, as folders of the Hub need; they must lead to a file of the right kind.",
        ],
    )
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        samples = Path(folder) / "samples"
        prepare(samples)
        (samples / "port").write_text(str(server.getsockname()[1]))
        (samples.parent / "secret.txt").write_text(SECRET)
        write_secret(samples.parent / "secret.mp4")
        peak, slowest, refused = 0.0, 0.0, 0
        for hostile in HOSTILE:
            if only not in f"{hostile.kind}: {hostile.name}":
                continue
            ending, fault = try_hostile(hostile, samples, server)
            campaign.expect(hostile.kind, f"{hostile.name}: lfdm {hostile.words[:60]}", not fault, fault)
            peak, slowest, refused = max(peak, ending.megabytes), max(slowest, ending.seconds), refused + ending.refused
            print(f"{hostile.name}: {'FAULT ' + fault if fault else ending.output.strip()[-200:]}", flush=True)
    campaign.figures = {"refused": refused, "most memory, MB": round(peak), "most processor time, s": round(slowest, 1)}
    return campaign


def try_hostile(hostile: Hostile, samples: Path, server: socket.socket) -> tuple[Ending, str]:
    """Run the command of a hostile file in its own copy of the samples; return how it ended and what broke the promise."""
    folder = samples.with_name("case")
    shutil.copytree(samples, folder)
    try:
        hostile.write(folder)
        ending = run_words(hostile.words.split(), folder)
        return ending, ending.fault() or _broken(hostile, ending, folder, server)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(folder.with_name("case-clips"), ignore_errors=True)


def _broken(hostile: Hostile, ending: Ending, folder: Path, server: socket.socket) -> str:
    if (folder / RAN).exists():
        return "code of the file ran"
    if ESCAPE in ending.output or ESCAPE[:2] in ending.output:
        return f"escape codes in the output: {ending.output!r}"
    if SECRET in ending.output:
        return "a file elsewhere was shown"
    if not hostile.may_work and not ending.refused:
        return f"not refused: {ending.output}"
    if (folder / "precious").exists() and not any((folder / "precious").iterdir()):
        return "files behind a link were removed"
    lines = [line for line in ending.output.splitlines() if line.startswith("lfdm: ")]
    if ending.refused and (len(lines) != 1 or len(lines[0]) > MAX_LINE):
        return f"{len(lines)} lines of up to {max(map(len, lines), default=0)} characters: {ending.output}"
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return ""
    return "an address was opened"
