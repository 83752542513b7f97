"""Plots of a report as SVG, in the text colour of the page. Needs matplotlib.

Their arguments are parts of results.json (see `lfdm.evaluation.protocol`).
"""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_MATPLOTLIB = "plots are left out: matplotlib is missing (pip install 'lfdm[eval]')"
GENERATED, REAL, OTHER = "#4f7fd9", "#e08a3c", "#9a9a9a"
"""Colours that are readable on white and on black."""
MAX_NAME = 32
"""Characters of a label next to a plot."""
_INK = "#010203"
"""Placeholder for the page's text colour in matplotlib's SVG."""


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def plot_by_label(by_label: dict[str, float], overall: float, name: str) -> str:
    """Plot one bar per label and a line for all clips, from 0 to 1."""

    def draw(axes: "Axes") -> None:
        bars = axes.barh(range(len(by_label)), list(by_label.values()), color=GENERATED, height=0.62)
        axes.set_yticks(range(len(by_label)), [_shorten(label) for label in by_label])
        axes.bar_label(bars, fmt="%.2f", padding=4, color=_INK, fontsize=9)
        axes.axvline(overall, color=REAL, linewidth=1.5, label=f"all clips {overall:.3f}")
        axes.set_xlim(0, 1.12)
        axes.set_xlabel(name)
        axes.invert_yaxis()
        _legend_above(axes)

    return _draw(draw, height=1.1 + 0.32 * len(by_label))


def plot_groups(groups: dict[str, dict[str, float]], name: str) -> str:
    """Plot a distance per class or subject with its interval and its floor."""

    def draw(axes: "Axes") -> None:
        rows, values = np.arange(len(groups)), [group["value"] for group in groups.values()]
        errors = [[max(0.0, v - g["low"]), max(0.0, g["high"] - v)] for v, g in zip(values, groups.values(), strict=True)]
        at_floor = [g["value_at_floor"] for g in groups.values()]
        axes.errorbar(values, rows, xerr=np.array(errors).T, fmt="o", color=GENERATED, capsize=3, label="generated")
        axes.plot(at_floor, rows, "D", color=GENERATED, mfc="none", label="generated, floor's N")
        axes.plot([g["floor"] for g in groups.values()], rows, "s", color=REAL, label="floor")
        axes.set_yticks(rows, [_shorten(name) for name in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(name)
        _legend_above(axes)

    return _draw(draw, height=1.2 + 0.3 * len(groups))


def plot_spectra(smoothness: dict[str, Any], num_frames: int) -> str:
    """Plot the temporal spectra; frequencies that count as jitter are shaded."""
    generated, real = smoothness["generated_spectrum"], smoothness["real_spectrum"]

    def draw(axes: "Axes") -> None:
        frequencies = np.arange(len(real)) / num_frames
        axes.axvspan(smoothness["above_cycles_per_frame"], 0.5, color=OTHER, alpha=0.18, linewidth=0)
        for power, colour, label in ((real, REAL, "real"), (generated, GENERATED, "generated")):
            values = np.array(power, dtype=float)
            if (values > 0).any():
                axes.semilogy(frequencies[1:], np.maximum(values[1:], 1e-12), "o-", color=colour, markersize=4, label=label)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.yaxis.set_minor_formatter(lambda _value, _: "")
        axes.set_ylim(*_decades(generated, real))
        axes.set_xlabel("cycles per frame (shaded: counted as jitter)")
        axes.set_ylabel("power")
        axes.legend(frameon=False, labelcolor=_INK)

    return _draw(draw)


def _decades(*spectra: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten that enclose all positive powers except that of the mean."""
    positive = [power for spectrum in spectra for power in spectrum[1:] if power > 0] or [1.0]
    return 10.0 ** np.floor(np.log10(min(positive))), 10.0 ** np.ceil(np.log10(max(positive)) + 1e-9)


def plot_energies(generated: np.ndarray, real: np.ndarray) -> str:
    """Plot the motion energies of the clips as two histograms over one range."""

    def draw(axes: "Axes") -> None:
        top = max(float(generated.max()), float(real.max()), 1e-6)
        edges = np.linspace(0, top, 25).tolist()
        for values, colour, label in ((real, REAL, "real"), (generated, GENERATED, "generated")):
            axes.hist(values, edges, color=colour, alpha=0.3)
            axes.hist(values, edges, color=colour, histtype="step", linewidth=1.5, label=label)
        axes.set_xlabel("motion energy of a clip (mean change per frame)")
        axes.set_ylabel("clips")
        axes.legend(frameon=False, labelcolor=_INK)

    return _draw(draw)


def plot_reconstruction(reconstruction: dict[str, dict[str, Any]]) -> str:
    """Plot stage 1's mean error of every frame, and that of copying frame 0."""

    def draw(axes: "Axes") -> None:
        for (name, figures), colour in zip(reconstruction.items(), (GENERATED, REAL, OTHER), strict=True):
            errors = figures["l1_by_frame"]
            axes.plot(np.arange(1, len(errors) + 1), errors, "o-", color=colour, markersize=4, label=name)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("frame")
        axes.set_ylabel("L1")
        axes.legend(frameon=False, labelcolor=_INK)

    return _draw(draw)


def _legend_above(axes: "Axes") -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=_INK)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def _draw(draw: Callable[["Axes"], None], *, width: float = 6.4, height: float = 3.2) -> str:
    """Return one plot as an `<svg>` element."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": draw.__qualname__,  # the same element names in every run
        "font.family": "sans-serif",
        "text.parse_math": False,  # a label may contain a dollar sign
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, color=_INK, linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
