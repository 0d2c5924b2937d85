"""Axes, labels and colours of the charts, and a chart as SVG: its text stays text.

Colours are the variables of the page, so that a chart follows the page into dark mode and print.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from scipy import optimize

# The page's colours, light and dark. Blue is Okabe and Ito's. No fact is told by colour alone.
COLORS = {
    "paper": ("#ffffff", "#14171a"),
    "ink": ("#1b1d1f", "#e7e9ea"),
    "muted": ("#5a6068", "#a5acb3"),
    "rule": ("#d9dce0", "#353b41"),
    "accent": ("#0072b2", "#56b4e9"),
}
# The page replaces each of these inks with its colour of the same name.
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
WIDTH = 430  # pixels, nearly a phone's width; text has its nominal size at this width
LINE = 17  # pixels from label to label
RIGHT = 170  # pixels for the labels at the right of a chart


def new_axes(height: float, right: int = RIGHT, left: int = 70) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / WIDTH, 48 / height, 1 - (left + right) / WIDTH, 1 - 92 / height))
    return figure, axes


def add_scale(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Round ticks; a logarithmic scale if the largest value is at least 3 times the smallest."""
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


def add_labels(axes: Axes, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Each point's name at the right edge, near the point's height. No two names overlap."""
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


def to_svg(figure: Figure, ident: str, title: str, description: str) -> str:
    """The figure as an ``<svg>`` for HTML, named for screen readers. ``ident`` keeps ids apart."""
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
    """The colours as CSS variables, for dark or light."""
    return "".join(f"--{name}: {inks[dark]}; " for name, inks in COLORS.items())


def standalone(chart: str) -> str:
    """A chart from ``to_svg`` as a whole file, with its colours."""
    style = (
        f"<style>:root {{ {variables(dark=False)}}} "
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(dark=True)}}} }} "
        "svg { font-family: system-ui, sans-serif; background: var(--paper) }</style>"
    )
    return chart.replace("</desc>", f"</desc>{style}", 1) + "\n"
