"""The charts: a single accent, and labels next to the points."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reports.analysis.change_points import Change
from reports.analysis.selection import TOTAL
from reports.render.charts.svg import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    RIGHT,
    RULE,
    add_labels,
    add_scale,
    new_axes,
    to_svg,
)


def time_and_memory(table: pd.DataFrame, ident: str, name: str) -> str:
    """Time of forward and backward against peak memory, with a label for each implementation.

    ``table`` is a result of ``selection.measured``. Blue marks the Pareto front.
    """
    known = table.dropna(subset=[TOTAL, "peak_memory"])
    reference = known[known.index.str.endswith(".reference")]
    points = known.drop(reference.index)
    time, memory = points[TOTAL], points["peak_memory"] / 2**20
    front = pareto(points)
    figure, axes = new_axes(max(300, LINE * len(points) + 110))
    add_scale(axes, "x", [*time, *reference[TOTAL]])
    add_scale(axes, "y", [*memory, *reference["peak_memory"] / 2**20])
    for x, y in zip(reference[TOTAL], reference["peak_memory"] / 2**20, strict=True):
        axes.axvline(x, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.axhline(y, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(
            x, 1.02, "reference", transform=axes.get_xaxis_transform(), color=MUTED, ha="center"
        )
    best = points.loc[front].sort_values(TOTAL)
    axes.step(best[TOTAL], best["peak_memory"] / 2**20, where="post", color=ACCENT, zorder=2)
    on = points.index.isin(front)
    axes.plot(time[on], memory[on], "o", color=ACCENT, zorder=3)
    axes.plot(time[~on], memory[~on], "o", color=MUTED, fillstyle="none", zorder=3)
    axes.set_xlabel("forward and backward (ms)")
    axes.set_ylabel("peak memory (MiB)")
    add_labels(
        axes,
        [(x, y, _short(i), i in front) for i, x, y in zip(points.index, time, memory, strict=True)],
    )
    told = "; ".join(
        f"{i}: {t:.4g} ms, {m:.4g} MiB" for i, t, m in zip(points.index, time, memory, strict=True)
    )
    return to_svg(
        figure,
        ident,
        f"Time against peak memory, {name}",
        f"{told}. On the Pareto front: {', '.join(front)}.",
    )


def pareto(points: pd.DataFrame) -> list[str]:
    """The Pareto front: no other loss is as fast and as light, and better in one of the two."""
    front: list[str] = []
    least = np.inf
    for impl, one in points.sort_values([TOTAL, "peak_memory"]).iterrows():
        if one["peak_memory"] < least:
            front.append(str(impl))
            least = one["peak_memory"]
    return front


def multiples(ratios: pd.DataFrame, ident: str, name: str) -> str:
    """Each time as a multiple of the reference's time, a row for each implementation."""
    ratios = ratios[["forward", "backward", TOTAL]].dropna(how="all")
    ratios = ratios[::-1]  # the first row is the lowest
    figure, axes = new_axes(LINE * 1.25 * len(ratios) + 110, right=20, left=RIGHT)
    rows = np.arange(len(ratios))
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(1, 1.02, "reference", transform=axes.get_xaxis_transform(), color=MUTED, ha="center")
    axes.hlines(rows, ratios.min(axis=1), ratios.max(axis=1), color=RULE, linewidth=1)
    marks = {"forward": (">", MUTED), "backward": ("<", MUTED), TOTAL: ("o", ACCENT)}
    words = {"forward": "forward", "backward": "backward", TOTAL: "forward and backward"}
    for pass_, (marker, color) in marks.items():
        filled = "full" if color == ACCENT else "none"
        axes.plot(
            ratios[pass_],
            rows,
            marker,
            color=color,
            fillstyle=filled,
            label=words[pass_],
        )
    axes.set_yticks(rows, [_short(i) for i in ratios.index])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(-0.6, len(ratios) - 0.4)
    axes.set_xlim(0, None)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("multiple of the reference's time (×)")
    figure.legend(
        loc="upper left",
        ncols=3,
        frameon=False,
        labelcolor=MUTED,
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0,
        bbox_to_anchor=(0.0, 1.0),
    )
    told = "; ".join(
        f"{i}: " + ", ".join(f"{words[p]} {r:.2f}" for p, r in one.dropna().items())
        for i, one in ratios[::-1].iterrows()
    )
    return to_svg(figure, ident, f"Times as multiples of the reference, {name}", told + ".")


def history(
    series: Mapping[str, pd.Series], changes: Sequence[Change], unit: str, ident: str, name: str
) -> str:
    """Values by commit, the oldest first: a line for each implementation, changes marked."""
    commits = list(dict.fromkeys(commit for one in series.values() for commit in one.index))
    place = {commit: n for n, commit in enumerate(commits)}
    scale, unit = (2**20, "MiB") if unit == "bytes" else (1, unit)
    changed = {one.impl for one in changes}
    figure, axes = new_axes(max(260, LINE * len(series) + 110))
    add_scale(axes, "y", [value / scale for one in series.values() for value in one])
    labels = []
    for impl, one in series.items():
        x, y = [place[commit] for commit in one.index], one.to_numpy() / scale
        color, width = (ACCENT, 1.75) if impl in changed else (MUTED, 1)
        axes.plot(
            x, y, color=color, linewidth=width, marker="." if len(x) < 30 else "", markersize=4
        )
        labels.append((x[-1], y[-1], _short(impl), impl in changed))
    for one in changes:
        at = place[one.commit]
        axes.plot(
            at, one.after / scale, "^" if one.rise else "v", color=ACCENT, markersize=9, zorder=4
        )
    room = [0.0, 0.0]  # the ends of the last names on two lines; names without room are left out
    for commit in sorted({one.commit for one in changes}, key=place.__getitem__):
        axes.axvline(place[commit], color=ACCENT, linewidth=1, linestyle=(0, (1, 2)))
        axes.autoscale_view()
        left = axes.transData.transform((place[commit], 0))[0] - 30
        line = 0 if left >= room[0] else 1
        if left >= room[line]:
            room[line] = left + 64
            axes.annotate(
                commit[:8],
                (place[commit], 1),
                (0, 4 + 15 * line),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset pixels",
                color=ACCENT,
                ha="center",
            )
    ends = [0, len(commits) - 1] if len(commits) > 1 else [0]
    axes.set_xticks(ends, [commits[end][:8] for end in ends])
    axes.set_xlabel(f"{len(commits)} commits, oldest first")
    axes.set_ylabel(f"{unit}")
    add_labels(axes, labels)
    told = "; ".join(
        f"{i}: {one.iloc[0] / scale:.4g} to {one.iloc[-1] / scale:.4g} {unit}"
        for i, one in series.items()
    )
    marks = " ".join(
        f"{one.impl} changes at {one.commit[:8]}, "
        f"{one.before / scale:.4g} to {one.after / scale:.4g} {unit}."
        for one in changes
    )
    return to_svg(figure, ident, f"History of {name}", f"{told}. {marks}")


def samples(groups: Mapping[str, Sequence[float]], unit: str, ident: str, name: str) -> str:
    """The samples of each group on a line, and their median."""
    figure, axes = new_axes(LINE * 2 * len(groups) + 80, right=20, left=RIGHT)
    for row, values in enumerate(groups.values()):
        axes.plot(values, [-row] * len(values), "|", color=MUTED, markersize=12)
        axes.plot(np.median(values), -row, "D", color=ACCENT, markersize=6)
    axes.set_yticks([-row for row in range(len(groups))], list(groups))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-len(groups) + 0.4, 0.6)
    axes.set_xlabel(f"{unit}; the diamond is the median")
    return to_svg(
        figure,
        ident,
        f"Samples of {name}",
        "; ".join(
            f"{group}: median {np.median(values):.4g} {unit} of {len(values)}"
            for group, values in groups.items()
        ),
    )


def _short(impl: str) -> str:
    """The name without its level, which is in the chart's title, or the end of a long path."""
    name = impl.partition(".")[2] or impl
    return name if len(name) <= 22 else f"…{name[-21:]}"
