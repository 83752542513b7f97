"""Commands that make clip data sets."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from lfdm.cli.console import Values, progress_bar
from lfdm.cli.conversion_report import (
    conversion_values,
    data_set_values,
    print_clips,
    print_notes,
    print_skipped,
    print_some,
    report_conversion,
)
from lfdm.config.video import Fit, FolderLayout, SizeSetting, is_one_number
from lfdm.data.index import read_index
from lfdm.errors import UserError

if TYPE_CHECKING:
    from lfdm.data.characters.data_set import RenderedCharacters

MAX_LINES = 20


def data_puppets(
    *,
    out: Path,
    num_subjects: int = 360,
    num_takes: int = 2,
    free_motion: float = 0.0,
    size: SizeSetting = 64,
    num_frames: int = 16,
    fps: float = 8.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    truth: Literal["none", "test", "all"] = "test",
    num_workers: int | None = None,
) -> Values:
    """Render procedural puppets performing labelled actions, with exactly known motion.

    Args:
        out: New folder for the clip data set.
        num_subjects: Puppets of different appearance.
        num_takes: Clips of each subject and action.
        free_motion: Share of clips, 0 to 0.95, whose joints move at random, with the label "free": for models that follow tracks.
        size: Height x width of frames, or one number for squares; multiples of 16, at least 32.
        num_frames: Frames of each clip.
        fps: Frames per second.
        seed: Seed of the data set.
        test_fraction: Fraction of subjects held out for testing.
        truth: Clips for which the exact flow and visibility are stored, too.
        num_workers: Processes; by default one per core.
    """
    from lfdm.data.puppets.data_set import write_puppets

    with progress_bar() as progress:
        index = write_puppets(
            out,
            num_subjects=num_subjects,
            num_takes=num_takes,
            free_motion=free_motion,
            size=size,
            num_frames=num_frames,
            fps=fps,
            seed=seed,
            test_fraction=test_fraction,
            truth=truth,
            num_workers=num_workers,
            progress=progress,
        )
    print(index)
    return data_set_values(out, read_index(out))


def data_characters(
    source: Annotated[Path, Positional],
    *,
    out: Path,
    labels: tuple[str, ...] = (),
    num_subjects: int = 100,
    num_takes: int = 2,
    free_motion: float = 0.0,
    size: SizeSetting = 128,
    num_frames: int = 16,
    fps: float = 8.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    difficulty: Literal["easy", "handheld", "entering"] = "easy",
    backgrounds: Path | None = None,
    shadows: bool = False,
    transparent: bool = False,
    truth: Literal["none", "test", "all"] = "test",
    num_workers: int | None = None,
) -> Values:
    """Render rigged, animated characters from glTF files, with exactly known motion; needs the extra [render].

    The same command continues where an earlier one was interrupted.

    Args:
        source: Folder of .gltf or .glb files.
        out: New folder for the clip data set.
        labels: Animations to render; by default those that all files share and that move the figure.
        num_subjects: Characters of different parts and colours; test subjects have files of their own.
        num_takes: Clips of each subject and label.
        free_motion: Share of clips, 0 to 0.95, whose joints move at random, with the label "free": for models that follow tracks.
        size: Height x width of frames, or one number for squares; multiples of 16, at least 32.
        num_frames: Frames of each clip.
        fps: Frames per second.
        seed: Seed of the data set.
        test_fraction: Fraction of subjects, and of files, held out for testing.
        difficulty: easy (still camera), handheld (swaying, patterns, blur, compression) or entering (also cut by the frame).
        backgrounds: Folder of pictures for ground and wall.
        shadows: Draw cast shadows, which the exact flow does not follow.
        transparent: Leave out ground and wall, and give the clips an alpha channel.
        truth: Clips for which the exact flow and visibility are stored, too.
        num_workers: Processes; by default one per core.
    """
    from lfdm.data.characters.data_set import write_characters

    with progress_bar() as progress:
        result = write_characters(
            source,
            out,
            labels=labels,
            num_subjects=num_subjects,
            num_takes=num_takes,
            free_motion=free_motion,
            size=size,
            num_frames=num_frames,
            fps=fps,
            seed=seed,
            test_fraction=test_fraction,
            difficulty=difficulty,
            backgrounds=backgrounds,
            shadows=shadows,
            transparent=transparent,
            truth=truth,
            num_workers=num_workers,
            progress=progress,
        )
    _report_characters(result)
    return {**data_set_values(out, read_index(out)), "visible": result.visible, "skipped": result.skipped}


def _report_characters(result: "RenderedCharacters") -> None:
    """Print the files left out and how much of the figure the first frame shows, which bounds what warping can make."""
    sys.stderr.writelines(f"skipped {reason}\n" for reason in result.skipped[:MAX_LINES])
    for label, share in result.visible.items():
        sys.stderr.write(f"{label}: {share:.0%} of the figure shows in the first frame\n")
    print(result.index)


def data_lpc(
    *,
    sheets: Path,
    out: Path,
    num_characters: int = 300,
    size: SizeSetting = 64,
    num_frames: int = 16,
    seed: int = 0,
    test_fraction: float = 0.2,
    num_workers: int | None = None,
) -> Values:
    """Render labelled clips from LPC sprite sheets.

    Args:
        sheets: Folder of the sheets.
        out: Folder for the clip data set; an existing data set there is replaced.
        num_characters: Randomly assembled characters.
        size: Height x width of frames, or one number for squares; multiples of 16.
        num_frames: Frames of each clip.
        seed: Seed of the data set.
        test_fraction: Fraction of characters held out for testing.
        num_workers: Threads; by default one per core.
    """
    from lfdm.data.sprites import write_lpc

    with progress_bar() as progress:
        index = write_lpc(
            sheets,
            out,
            num_characters=num_characters,
            size=size,
            num_frames=num_frames,
            seed=seed,
            test_fraction=test_fraction,
            num_workers=num_workers,
            progress=progress,
        )
    print(index)
    return data_set_values(out, read_index(out))


def data_sprites(
    sheets: Annotated[tuple[Path, ...], Positional, arg(metavar="SHEET [SHEET ...]")],
    *,
    out: Path,
    grid: Annotated[str | None, arg(metavar="HEIGHTxWIDTH")] = None,
    rows: Annotated[str, arg(metavar="LABEL,LABEL,...")] = "",
    margin: int = 0,
    spacing: int = 0,
    scale: int = 1,
    fps: float | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Values:
    """Make a clip data set from sprite sheets, which keeps their alpha.

    Args:
        sheets: Pictures that --grid and --rows describe, or json files of Aseprite or TexturePacker. Each is a subject.
        out: Folder for the clip data set; an existing data set there is replaced.
        grid: Size of a cell in pixels, such as 64x64 or 64 for a square.
        rows: Labels of the rows from the top; - leaves a row out. A row ends at its first empty cell.
        margin: Pixels around the cells.
        spacing: Pixels between cells.
        scale: Whole factor by which frames are enlarged; pixels stay square.
        fps: Frames per second; by default as an Aseprite json states, or 8.
        test_fraction: Fraction of sheets held out for testing.
        seed: Seed of the split.
    """
    from lfdm.data.corpora.sprites import write_sprites
    from lfdm.data.sprite_sheets import Grid

    names = [None if name.strip() == "-" else name.strip() for name in rows.split(",")] if rows else []
    if grid is None and (margin or spacing):
        raise UserError("margin and spacing have no effect without --grid")
    with progress_bar() as progress:
        report = write_sprites(
            sheets,
            out,
            grid=None if grid is None else Grid.parse(grid, margin=margin, spacing=spacing),
            rows=names,
            scale=scale,
            fps=fps,
            test_fraction=test_fraction,
            seed=seed,
            progress=progress,
        )
    return report_conversion(report, out)


def data_folder(
    folder: Annotated[Path, Positional, arg(metavar="DIR")],
    *,
    out: Path,
    size: Annotated[str | None, arg(metavar="HxW|SHORT")] = None,
    fit: Fit = "pad",
    layout: FolderLayout = "auto",
    labels: Annotated[str | None, arg(metavar="TABLE|txt")] = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    max_frames: int | None = None,
    clip_seconds: float | None = None,
    stride_seconds: float | None = None,
    scene_cuts: bool = False,
    num_workers: int | None = None,
) -> Values:
    """Make a clip data set from your own clips, in folders <label>/<subject>/<clip>, <label>/<clip>, or <split>/<label>/<clip>.

    The same command continues where an earlier one was interrupted.

    Args:
        folder: Folder tree of videos or folders of frames.
        out: Folder for the clip data set; an existing data set there is replaced.
        size: Height x width of frames, multiples of 16, such as 96x128. One number (default: 64) is the short side of the most
            frequent shape; without --size all clips must have one shape.
        fit: Black borders (pad), the central part (crop) or stretching for clips of another shape.
        layout: Where a clip's label, subject and split are in its path; by default this is recognised.
        labels: Table with the columns path,label and perhaps subject,split; or txt for a .txt next to each clip.
        test_fraction: Fraction of subjects held out for testing, where the folder has no split of its own.
        seed: Seed of the split into training and test subjects.
        max_frames: Number of frames to keep from the start of each clip; by default all.
        clip_seconds: Length of the clips that long videos are cut into; by default they stay whole.
        stride_seconds: Time between the starts of such clips; by default their length.
        scene_cuts: Also cut videos at scene cuts.
        num_workers: Processes; by default one per core, or fewer for small data.
    """
    from lfdm.data.corpora.cutting import Cutting
    from lfdm.data.corpora.folder import write_folder

    cut = scene_cuts or clip_seconds is not None or stride_seconds is not None
    cutting = Cutting(clip_seconds=clip_seconds, stride_seconds=stride_seconds, scene_cuts=scene_cuts) if cut else None
    short_side = int(size) if size is not None and is_one_number(size) else None
    frames = {"size": None if short_side is not None else size, "short_side": short_side, "fit": fit, "max_frames": max_frames}
    split = {"layout": layout, "labels": labels, "test_fraction": test_fraction, "seed": seed}
    with progress_bar() as progress:
        report = write_folder(folder, out, **frames, **split, cutting=cutting, num_workers=num_workers, progress=progress)
    return report_conversion(report, out)


def data_corpus(name: str, layout: str) -> Callable[..., Values]:
    """Return the command that converts the corpus `name`; `layout` describes its download."""

    def data_corpus(
        source: Annotated[Path, Positional, arg(metavar="SOURCE")],
        *,
        out: Path,
        size: SizeSetting = 128,
        num_workers: int | None = None,
    ) -> Values:
        """Make a clip data set from your copy of CORPUS, cropped and split as in the paper; the same command resumes.

        Args:
            source: Folder with LAYOUT
            out: Folder for the clip data set.
            size: Height x width of frames, or one number for squares; multiples of 16. Other shapes get black borders.
            num_workers: Processes; by default one per core, or fewer for small data.
        """
        from lfdm.data.corpora.mhad import UTD_MHAD
        from lfdm.data.corpora.mug import MUG
        from lfdm.data.corpora.natops import NATOPS
        from lfdm.data.corpora.published import write_published

        corpus = {"mug": MUG, "mhad": UTD_MHAD, "natops": NATOPS}[name]
        with progress_bar() as progress:
            report = write_published(corpus, source, out, size=size, num_workers=num_workers, progress=progress)
        print_skipped(report, most=MAX_LINES)
        print_notes(report, most=MAX_LINES)
        print_clips(report, out)
        if report.num_reused:
            print(f"{report.num_reused} of them were converted before")
        print(f"training clips: {report.num_clips('train')} of the paper's {corpus.num_train}")
        print_some([f"missing {gap}" for gap in report.missing], MAX_LINES)
        return conversion_values(report, out)

    data_corpus.__doc__ = (data_corpus.__doc__ or "").replace("CORPUS", name.upper()).replace("LAYOUT", layout)
    return data_corpus
