"""The figures, drawn from stored runs in ncmon's style: 3.1, 3.3, what is guaranteed, and the conjectures.

Runs that do not reach perfect training accuracy are marked at the foot of a panel and left out of its lines, as in the
thesis. Where several seeds repeat a point the line goes through their mean and a bar spans them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from facts import Outcome, chosen, depths_of

from ncmon.plot import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORM_TITLES = {"affine": "affine BatchNorm", "plain": "BatchNorm without affine", "none": "no BatchNorm"}
IDEAL: dict[str, Any] = {"color": "#999999", "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 1}
LEFT_OUT = "left out: training accuracy below 1"
BOUND_LINES = (
    ("intra_cos_min", "cert_plus_intra_min", "sharp_intra", "cert_intra_min", "thm_tight_intra"),
    ("inter_cos_max", "cert_plus_inter_max", "sharp_inter", "cert_inter_max", "thm_tight_inter"),
)
BOUND_TITLES = {
    "cert_plus": "P+: per class, means known",
    "cert": "P: per class",
    "sharp": "S: from loss and norms",
    "thm_tight": "T: Theorem 2.3.1, reachable interval",
}


def figure_31(found: Sequence[Outcome]) -> Figure:
    """Least intra-class and greatest inter-class cosine of the last features over weight decay, by normalisation."""
    shallow, _ = depths_of(found)
    with style.styled():
        figure, axes = style.grid(2, columns=2, width=4.0, height=3.3)
        for axis, name in zip(axes, ("intra_cos_min", "inter_cos_max"), strict=True):
            missing = []
            for place, (norm, title) in enumerate(NORM_TITLES.items()):
                runs = chosen(found, data="normal", n_layers=shallow, norm=norm)
                _line(axis, runs, lambda one, name=name: one.values[name], place, title)
                missing.append(sorted({one.spec.weight_decay for one in runs if not one.perfect}))
            _ideal(axis, name, found)
            _over_decay(axis, chosen(found, data="normal", n_layers=shallow))
            _foot(axis, missing)
        axes[0].set_title("least intra-class cosine")
        axes[1].set_title("greatest inter-class cosine")
        figure.suptitle(f"Neural collapse of {shallow}-layer MLPs over weight decay", fontsize=10.5)
        style.legend(figure, axes)
    return figure


def figure_33(found: Sequence[Outcome]) -> Figure:
    """Accuracy of the nearest class mean and both cosines over the layers, a line a weight decay."""
    _, deep = depths_of(found)
    runs = chosen(found, data="normal", n_layers=deep, seed=0)
    panels = {
        "ncc_acc": "accuracy of the nearest class mean",
        "intra_cos_min": "least intra-class cosine",
        "inter_cos_max": "greatest inter-class cosine",
    }
    with style.styled():
        import matplotlib

        shades = matplotlib.colormaps["viridis_r"]
        figure, axes = style.grid(3, columns=3, width=3.6, height=3.3)
        for axis, (name, title) in zip(axes, panels.items(), strict=True):
            for place, one in enumerate(runs):
                if not one.perfect:
                    continue
                values = one.depth[name]
                axis.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    color=shades(0.12 + 0.88 * place / max(len(runs) - 1, 1)),
                    marker=style.MARKS[place % len(style.MARKS)],
                    label=f"weight decay {one.spec.weight_decay:g}",
                )
            if name == "inter_cos_max":
                axis.axhline(0.0, color="#666666", linewidth=0.8, zorder=1)
            _ideal(axis, name, found)
            axis.set_title(title)
            axis.set_xlabel("layer, from the input")
            axis.set_xticks(range(1, deep, 1 if deep < 10 else 2))
        left = [f"{one.spec.weight_decay:g}" for one in runs if not one.perfect]
        under = f"\nleft out, training accuracy below 1: weight decay {', '.join(left)}" if left else ""
        figure.suptitle(
            f"Neural collapse over the layers of {deep}-layer MLPs with affine BatchNorm{under}", fontsize=10.5
        )
        style.legend(figure, axes)
    return figure


def figure_bounds(found: Sequence[Outcome]) -> Figure:
    """What is measured beside what is guaranteed, over weight decay."""
    shallow, _ = depths_of(found)
    runs = chosen(found, data="normal", n_layers=shallow)
    with style.styled():
        figure, axes = style.grid(2, columns=2, width=4.0, height=3.3)
        for axis, (measured, *bounds) in zip(axes, BOUND_LINES, strict=True):
            _line(axis, runs, lambda one, name=measured: one.values[name], 0, "measured")
            for place, name in enumerate(bounds, 1):
                kind = name.removesuffix("_min").removesuffix("_max").removesuffix("_intra").removesuffix("_inter")
                some = [one for one in runs if name in one.values]
                if some:
                    _line(axis, some, lambda one, name=name: one.values[name], place, BOUND_TITLES[kind], dashed=True)
            _ideal(axis, measured, found)
            _over_decay(axis, runs)
            _foot(axis, [sorted({one.spec.weight_decay for one in runs if not one.perfect})])
        axes[0].set_title("least intra-class cosine: guaranteed from below")
        axes[1].set_title("greatest inter-class cosine: guaranteed from above")
        own = any(name in one.values for one in runs for name in ("thm_intra", "thm_tight_intra"))
        silent = "" if own else "; Theorem 2.3.1 itself (T) says nothing here"
        figure.suptitle(f"{shallow}-layer MLPs with affine BatchNorm: measured and guaranteed{silent}", fontsize=10.5)
        style.legend(figure, axes)
    return figure


def figure_conjectures(found: Sequence[Outcome]) -> Figure:
    """The three conjectures on conic hull data: margin over decay, margin over depth, effective depth over decay."""
    shallow, deep = depths_of(found)
    with style.styled():
        import matplotlib

        shades = matplotlib.colormaps["viridis_r"]
        figure, axes = style.grid(3, columns=3, width=3.7, height=3.3)
        missing = []
        both = [chosen(found, data="cones", n_layers=layers) for layers in (shallow, deep)]
        for place, runs in enumerate(both):
            title = f"{(shallow, deep)[place]} layers"
            _line(axes[0], runs, lambda one: one.margin, place, title)
            missing.append(sorted({one.spec.weight_decay for one in runs if not one.perfect}))
            _line(axes[2], runs, lambda one: one.effective_depth(0.01), place, title)
        _over_decay(axes[0], [*both[0], *both[1]])
        _over_decay(axes[2], [*both[0], *both[1]])
        _foot(axes[0], missing)
        axes[0].set_title("3.1.1: cosine margin of the last layer")
        axes[2].set_title("3.2.2: effective depth, 1 % of errors")
        axes[2].set_ylim(bottom=0)
        first = [one for one in both[1] if one.spec.seed == 0]
        for place, one in enumerate(first):
            if one.perfect:
                axes[1].plot(
                    np.arange(1, len(one.depth["cos_margin"]) + 1),
                    one.depth["cos_margin"],
                    color=shades(0.12 + 0.88 * place / max(len(first) - 1, 1)),
                    marker=style.MARKS[place % len(style.MARKS)],
                    label=f"weight decay {one.spec.weight_decay:g}",
                )
        axes[1].set_title(f"3.2.1: cosine margin by depth, {deep} layers")
        axes[1].set_xlabel("layer, from the input")
        axes[1].set_xticks(range(1, deep, 1 if deep < 10 else 2))
        figure.suptitle("Conic hull data: what the conjectures say, and what runs do", fontsize=10.5)
        style.legend(figure, axes)
    return figure


FIGURES: dict[str, Callable[[Sequence[Outcome]], Figure]] = {
    "figure-3.1": figure_31,
    "figure-3.3": figure_33,
    "bounds": figure_bounds,
    "conjectures": figure_conjectures,
}
"""By the name of the file, without its ending."""


def _line(
    axis: Axes,
    runs: Sequence[Outcome],
    value: Callable[[Outcome], float],
    place: int,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    """Draw the mean over seeds of runs that fit the training set, with a bar from the least to the greatest."""
    kept = [one for one in runs if one.perfect]
    x = sorted({one.spec.weight_decay for one in kept})
    groups = [[value(one) for one in kept if one.spec.weight_decay == decay] for decay in x]
    mean = np.array([np.mean(group) for group in groups])
    low, high = np.array([min(group) for group in groups]), np.array([max(group) for group in groups])
    colour = style.COLOURS[place % len(style.COLOURS)]
    axis.plot(
        x,
        mean,
        color=colour,
        marker=style.MARKS[place % len(style.MARKS)],
        markersize=3.0 if dashed else 4.5,
        linestyle=style.DASHES[place % len(style.DASHES)] if dashed else "solid",
        linewidth=1.0 if dashed else 1.5,
        label=label,
        zorder=2 if dashed else 3,
    )
    if any(len(group) > 1 for group in groups):
        axis.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.6)


def _ideal(axis: Axes, name: str, found: Sequence[Outcome]) -> None:
    """Say where perfect collapse lies."""
    classes = next(one.spec.n_classes for one in found if one.spec.data == "normal")
    axis.axhline(-1.0 / (classes - 1) if name == "inter_cos_max" else 1.0, label="perfect collapse", **IDEAL)


def _over_decay(axis: Axes, runs: Sequence[Outcome]) -> None:
    """Space the decades of weight decay evenly, each decay named."""
    decays = sorted({one.spec.weight_decay for one in runs})
    axis.set_xscale("log")
    labels = [f"{decay:g}" for decay in decays]
    axis.set_xticks(decays, labels, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_xticks([], minor=True)
    axis.set_xlabel("weight decay")


def _foot(axis: Axes, missing: Sequence[Sequence[float]]) -> None:
    """Mark the decays whose runs were left out, a row a line of the panel."""
    low, high = axis.get_ylim()
    rows = [decays for decays in missing if decays]
    height = 0.05 * (high - low)
    for row, (place, decays) in enumerate((place, decays) for place, decays in enumerate(missing) if decays):
        axis.plot(
            decays,
            [low - height * (len(rows) - row)] * len(decays),
            "x",
            color=style.COLOURS[place % len(style.COLOURS)],
            markersize=5,
        )
    if rows:
        # The legend's own cross: of no line's colour, since it stands for all.
        axis.plot([], [], "x", color="#444444", markersize=5, label=LEFT_OUT)
    axis.set_ylim(low - height * (len(rows) + 1) if rows else low, high)
