"""Charts, as SVG for a page: one accent, direct labels, text left as text.

Colours are the page's own variables, so that a chart follows it into dark mode and print.
"""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from scipy import optimize

from reports.analysis.change_points import Change
from reports.analysis.selection import TOTAL

# The page's colours, in light and in dark; blue is Okabe and Ito's, and never alone in telling.
COLORS = {
    "paper": ("#ffffff", "#14171a"),
    "ink": ("#1b1d1f", "#e7e9ea"),
    "muted": ("#5a6068", "#a5acb3"),
    "rule": ("#d9dce0", "#353b41"),
    "accent": ("#0072b2", "#56b4e9"),
}
# What is drawn in one of these has, on the page, the colour of that name.
INKS = {name: f"#0102{n:02x}" for n, name in enumerate(COLORS)}
_, INK, MUTED, RULE, ACCENT = INKS.values()
mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "reports",  # the same numbers make the same file
        "text.parse_math": False,  # a $ in a name is a $
        "font.size": 12.5,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": RULE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "axes.labelsize": 12.5,
        "lines.linewidth": 1.5,
        "lines.markersize": 7,
    }
)
WIDTH = 430  # pixels, at which text has its size: a phone's, nearly
LINE = 17  # pixels from label to label
RIGHT = 170  # pixels for the labels of a chart, beside it


def time_and_memory(table: pd.DataFrame, ident: str, name: str) -> str:
    """Time of both passes against peak memory, each implementation labelled, the front drawn.

    ``table`` is as ``tables.measured`` gives it. On the front is what no other both outruns and
    undercuts.
    """
    known = table.dropna(subset=[TOTAL, "peak_memory"])
    reference = known[known.index.str.endswith(".reference")]
    points = known.drop(reference.index)
    time, memory = points[TOTAL], points["peak_memory"] / 2**20
    front = pareto(points)
    figure, axes = _axes(max(300, LINE * len(points) + 110))
    _scale(axes, "x", [*time, *reference[TOTAL]])
    _scale(axes, "y", [*memory, *reference["peak_memory"] / 2**20])
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
    _label(
        axes,
        [(x, y, _short(i), i in front) for i, x, y in zip(points.index, time, memory, strict=True)],
    )
    told = "; ".join(
        f"{i}: {t:.4g} ms, {m:.4g} MiB" for i, t, m in zip(points.index, time, memory, strict=True)
    )
    return svg(
        figure,
        ident,
        f"Time against peak memory, {name}",
        f"{told}. On the front: {', '.join(front)}.",
    )


def pareto(points: pd.DataFrame) -> list[str]:
    """Those that no other is both as fast and as light as, and better in one of the two."""
    front: list[str] = []
    least = np.inf
    for impl, one in points.sort_values([TOTAL, "peak_memory"]).iterrows():
        if one["peak_memory"] < least:
            front.append(str(impl))
            least = one["peak_memory"]
    return front


def multiples(table: pd.DataFrame, ident: str, name: str) -> str:
    """Each time as a multiple of the reference's time, a row for each implementation."""
    reference = table[table.index.str.endswith(".reference")].iloc[0]
    passes = ["forward", "backward", TOTAL]
    ratios = (
        table.drop(reference.name)[passes].div(reference[passes].astype(float)).dropna(how="all")
    )
    ratios = ratios[::-1]  # the first row is the lowest
    figure, axes = _axes(LINE * 1.25 * len(ratios) + 110, right=20, left=RIGHT)
    rows = np.arange(len(ratios))
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(1, 1.02, "reference", transform=axes.get_xaxis_transform(), color=MUTED, ha="center")
    axes.hlines(rows, ratios.min(axis=1), ratios.max(axis=1), color=RULE, linewidth=1)
    marks = {"forward": (">", MUTED), "backward": ("<", MUTED), TOTAL: ("o", ACCENT)}
    for name_, (marker, color) in marks.items():
        filled = "full" if color == ACCENT else "none"
        axes.plot(
            ratios[name_],
            rows,
            marker,
            color=color,
            fillstyle=filled,
            label=name_.replace("_", " and "),
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
        f"{i}: " + ", ".join(f"{p.replace('_', ' and ')} {r:.2f}" for p, r in one.dropna().items())
        for i, one in ratios[::-1].iterrows()
    )
    return svg(figure, ident, f"Times as multiples of the reference, {name}", told + ".")


def history(
    series: Mapping[str, pd.Series], changes: Sequence[Change], unit: str, ident: str, name: str
) -> str:
    """Values by commit, oldest first: a line for each implementation, its changes marked."""
    commits = list(dict.fromkeys(commit for one in series.values() for commit in one.index))
    place = {commit: n for n, commit in enumerate(commits)}
    scale, unit = (2**20, "MiB") if unit == "bytes" else (1, unit)
    changed = {one.impl for one in changes}
    figure, axes = _axes(max(260, LINE * len(series) + 110))
    _scale(axes, "y", [value / scale for one in series.values() for value in one])
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
    room = [0.0, 0.0]  # where the last name ends, in two lines: one without room is in the table
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
    _label(axes, labels)
    told = "; ".join(
        f"{i}: {one.iloc[0] / scale:.4g} to {one.iloc[-1] / scale:.4g} {unit}"
        for i, one in series.items()
    )
    marks = " ".join(
        f"{one.impl} changes at {one.commit[:8]}, "
        f"{one.before / scale:.4g} to {one.after / scale:.4g} {unit}."
        for one in changes
    )
    return svg(figure, ident, f"History of {name}", f"{told}. {marks}")


def samples(groups: Mapping[str, Sequence[float]], unit: str, ident: str, name: str) -> str:
    """Every sample of each group on a line, and its median."""
    figure, axes = _axes(LINE * 2 * len(groups) + 80, right=20, left=RIGHT)
    for row, values in enumerate(groups.values()):
        axes.plot(values, [-row] * len(values), "|", color=MUTED, markersize=12)
        axes.plot(np.median(values), -row, "D", color=ACCENT, markersize=6)
    axes.set_yticks([-row for row in range(len(groups))], list(groups))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-len(groups) + 0.4, 0.6)
    axes.set_xlabel(f"{unit}; the diamond is the median")
    return svg(
        figure,
        ident,
        f"Samples of {name}",
        "; ".join(
            f"{group}: median {np.median(values):.4g} {unit} of {len(values)}"
            for group, values in groups.items()
        ),
    )


def _short(impl: str) -> str:
    """The name without its level, which a chart has in its title; a path's end."""
    name = impl.partition(".")[2] or impl
    return name if len(name) <= 22 else f"…{name[-21:]}"


def _axes(height: float, right: int = RIGHT, left: int = 70) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / WIDTH, 48 / height, 1 - (left + right) / WIDTH, 1 - 92 / height))
    return figure, axes


def _scale(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Ticks that a reader can count by: of a logarithm only where the values span three or more."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if min(values) > 0 and max(values) >= 3 * min(values):
        getattr(axes, f"set_{which}scale")("log")
        wide = max(values) > 50 * min(values)
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axis.set_minor_locator(LogLocator(subs=()))
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.margins(0.08)
    axes.grid(axis=which, color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def _label(axes: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Each point's name at the right edge, at its own height or next to it: no two overlap."""
    axes.autoscale_view()
    box = axes.get_window_extent()
    at = axes.transData.transform([(x, y) for x, y, *_ in points])
    order = np.lexsort((-at[:, 0], at[:, 1]))
    steps = LINE * np.arange(len(points))
    wanted = np.clip(at[order, 1] - steps, box.y0, max(box.y0, box.y1 - steps[-1]))
    heights = optimize.isotonic_regression(wanted).x + steps
    edge = box.x1 + 14
    for index, height in zip(order, heights, strict=True):
        (x, y), (*_, text, strong) = at[index], points[index]
        axes.annotate(
            text,
            (x, y),
            (edge, height),
            xycoords="figure pixels",
            textcoords="figure pixels",
            va="center",
            color=ACCENT if strong else INK,
            weight="bold" if strong else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": RULE,
                "linewidth": 0.75,
                "shrinkA": 0,
                "shrinkB": 4,
            },
            zorder=1,
        )


def svg(figure: Figure, ident: str, title: str, description: str) -> str:
    """The figure as an ``<svg>`` for HTML: named for a screen reader, its ids its own."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    used = set(re.findall(r"(?:#|url\(#)([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{ident}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)([\w-]+)', rf"\1{ident}-\2", text)
    text = re.sub(r"font: (bold |700 )?([\d.]+)px [^;\"]*", _font, text)
    for name, ink in INKS.items():
        text = text.replace(ink, f"var(--{name})")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view[0]} role="img" aria-labelledby="{ident}-title {ident}-desc">'
        f'<title id="{ident}-title">{escape(title)}</title>'
        f'<desc id="{ident}-desc">{escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}px" + ("; font-weight: 600" if match[1] else "")


def variables(dark: bool) -> str:
    """The colours as CSS, for one of the two schemes."""
    return "".join(f"--{name}: {inks[dark]}; " for name, inks in COLORS.items())


def standalone(chart: str) -> str:
    """A chart of ``svg`` as a file of its own, with its colours."""
    style = (
        f"<style>:root {{ {variables(dark=False)}}} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(dark=True)}}} }} "
        "svg { font-family: system-ui, sans-serif; background: var(--paper) }</style>"
    )
    return chart.replace("</desc>", f"</desc>{style}", 1) + "\n"
