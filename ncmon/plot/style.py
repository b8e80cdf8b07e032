"""What every figure looks like, and how it becomes a file.

Colours of Okabe and Ito, told apart by nearly everybody; colour is never the only difference. No pyplot: figures know
no global state and no screen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncmon.errors import NotInstalled, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
GUARANTEED = "#6b6b6b"
FORMATS = ("png", "svg", "pdf")

_RC: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "axes.formatter.useoffset": False,
    # The same picture is the same file.
    "svg.hashsalt": "ncmon",
    "pdf.fonttype": 42,
}

_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": "ncmon"},
    "svg": {"Date": None, "Creator": "ncmon"},
    "pdf": {"CreationDate": None, "Creator": "ncmon", "Producer": None},
}
"""What is written into a file beside the picture: no date, no version."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside with ncmon's style; raises `NotInstalled` where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise NotInstalled("a plot", "matplotlib", "plot") from None
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # Names may have letters that the font does not: a box in a label is no reason to say more.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def grid(count: int, *, columns: int = 3, width: float = 3.3, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, in rows."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns + 0.3, height * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    return figure, axes


def logarithmic(axis: Axes) -> None:
    """Make the upright axis logarithmic, its numbers plain text: formulas cost half of the time of a picture."""
    from matplotlib.ticker import LogFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter())


def render(figure: Figure, form: str) -> bytes:
    """Return a figure as a file of one of `FORMATS`."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=form, metadata=_METADATA[form])
    return buffer.getvalue()


def form_of(path: Path) -> str:
    """Return the format that a file's ending says; raises `UsageError`."""
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise UsageError(f"{path}: expected a name that ends in one of {', '.join('.' + one for one in FORMATS)}")
    return form


def text(name: str) -> str:
    """Return somebody's name as a label: printable, and no formula."""
    return "".join(letter if letter.isprintable() else "?" for letter in name).replace("$", r"\$")


def short(name: str, most: int = 28) -> str:
    """Return a name that fits beside a line."""
    return text(name if len(name) <= most else name[: most - 1] + "…")


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend for all panels under the figure, each label once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        longest = max(map(len, found))
        columns = max(1, min(len(found), int(figure.get_figwidth() / (0.075 * longest + 0.6))))
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)
