"""Changes by commit: what a commit made worse or better, over all dtypes and workloads."""

import textwrap
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

from reports.analysis.change_points import SMALL, Change
from reports.analysis.series import subjects

WIDTH = 80  # columns of a terminal
NAME = 32  # columns of a loss's name
MEBIBYTE = 2**20
PARTLY = "partly fixed in "


def listing(found: Sequence[Change], order: Mapping[str, int]) -> Iterator[str]:
    """The rises among ``found``, in lines of 80 columns: a headline for each commit and device.

    Commits are sorted by ``order``. Below the headline each loss has a line for each metric that
    rose, the largest rise first. A metric of the same loss that fell has a line too. Rises of a few
    bytes share the last line.
    """
    rises = [one for one in found if one.rise]
    rose = {(one.commit, one.device, one.loss) for one in rises}
    falls = [one for one in found if not one.rise and not one.is_small]
    places = defaultdict(list)
    for one in rises + [one for one in falls if (one.commit, one.device, one.loss) in rose]:
        places[order[one.commit], one.commit, one.device].append(one)
    for _, commit, device in sorted(places):
        headline = [commit[:10], device, subjects().get(commit.rstrip("+"), "")]
        yield textwrap.shorten(" · ".join(filter(None, headline)), WIDTH, placeholder=" …")
        for line in _lines(places[order[commit], commit, device]):
            # No line ends between the words and the commit: textwrap keeps non-breaking spaces.
            kept = line.replace(PARTLY, PARTLY.replace(" ", "\xa0"))
            filled = textwrap.fill(kept, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
            yield filled.replace("\xa0", " ")


def _lines(changes: Sequence[Change]) -> Iterator[str]:
    large = defaultdict(list)
    for one in changes:
        if not one.is_small:
            large[quantity(one)].append(one)
    rows = [
        (_short(of[0].loss), f"{of[0].metric.removesuffix('_multiple')} {amount(of)}", state(of))
        for of in large.values()
    ]
    names, metrics = (max((len(row[n]) for row in rows), default=0) for n in (0, 1))
    for loss, metric, fate in rows:
        yield f"  {loss:{names}}  {metric:{metrics}}  {fate}"
    if small := [one for one in changes if one.is_small]:
        losses = ", ".join(dict.fromkeys(_short(one.loss) for one in small))
        yield f"  below {SMALL // MEBIBYTE} MiB: {amount(small)}, {state(small)}: {losses}"


def quantity(one: Change) -> tuple[Hashable, ...]:
    """What changed. Changes of one quantity differ in dtype, workload and machine alone."""
    return one.commit, one.device, one.loss, one.metric, one.kind, one.rise, one.environment


def amount(changes: Sequence[Change]) -> str:
    """The least and the largest change: of bytes and counts the difference, else percent."""
    of = changes[0]
    if of.kind == "stopped":
        return "stopped"
    prefix = "drift, " if of.kind == "drift" else ""
    differences = [one.after - one.before for one in changes]
    if of.unit == "bytes" and max(map(abs, differences)) >= SMALL:
        texts, unit = [f"{one / MEBIBYTE:+,.1f}" for one in _ends(differences)], " MiB"
    elif of.unit in ("bytes", "MB", "count"):
        texts = [f"{one:+,.0f}" for one in _ends(differences)]
        unit = "" if of.unit == "count" else f" {of.unit}"
    elif not all(one.before for one in changes):
        texts, unit = [f"{one:+.4g}" for one in _ends(differences)], f" {of.unit}"
    else:
        percents = _ends([100 * (one.after / one.before - 1) for one in changes])
        texts = [f"{one:+.1f}" if abs(one) < 100 else f"{one:+,.0f}" for one in percents]
        unit = " %"
    return prefix + " to ".join(dict.fromkeys(texts)) + unit


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The value nearest to zero, and the value farthest from it."""
    return min(values, key=abs), max(values, key=abs)


def state(changes: Sequence[Change]) -> str:
    """Whether changes of one direction are better, or worse and open, or fixed.

    Of the open changes, it says how many are partly fixed.
    """
    if not changes[0].rise:
        return "better"
    still = [one for one in changes if not one.fixed]
    if not still:
        return _in_commit("fixed", [one.fixed for one in changes])
    count = f"{len(still)} of {len(changes)} " if len(still) < len(changes) else ""
    text = f"worse, {count}open"
    falls = [one.partial_fix for one in still if one.partial_fix]
    if not falls:
        return text
    share = f"{len(falls)} of them " if len(falls) < len(still) else ""
    return f"{text}, {share}{_in_commit('partly fixed', [one.commit for one in falls])}"


def _in_commit(word: str, commits: Sequence[str]) -> str:
    """``word``, and the commit if there is only one."""
    names = {commit[:10] for commit in commits}
    return f"{word} in {names.pop()}" if len(names) == 1 else word


def _short(loss: str) -> str:
    return loss if len(loss) <= NAME else f"…{loss[1 - NAME :]}"
