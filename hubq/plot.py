"""The pictures of a card, as SVGs that are the same bytes every time: loss over size, loss by level, what takes the bytes."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hubq import compare
from hubq.metrics.inference import half_width
from hubq.nouns import Estimate, Measurement, Release

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Mid tones that keep a contrast of about 4:1 on white and on near black: a page's dark theme is often a class of the page,
# which an image cannot see, so `prefers-color-scheme` would be wrong exactly where it matters.
INK = "#777777"
SERIES = (("#2f7fc1", "o", True), ("#c0602a", "D", False), ("#4f8a3c", "s", False))
LEAST = 1e-5  # nats per token; zero has no logarithm, and below this little but an engine's rounding is left
PALETTE = ("#2f7fc1", "#c0602a", "#4f8a3c", "#8a5fb0", "#a8862a", "#3f8f8f", "#777777")
LN = "ln_ppl_ratio"
TICKS = (-50, -20, -10, -5, 5, 10, 20, 50, 100, 200, 500, 1000, 10000)  # percent
WIDTH = 6.8  # inches: narrow enough that letters can be read on a telephone
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), *((x, y) for y in (1, -1, 0.5, -0.5) for x in (1, -1)), (0.5, 1), (-0.5, -1))
FONT = 9.0  # points, which are the SVG's user units at 72 dots per inch


class Point(NamedTuple):
    """One file in one engine: `size` in the axis' unit, mean KL divergence in nats per token."""

    size: float
    level: str
    kld: Estimate

    @property
    def y(self) -> float:
        """Where the point is drawn."""
        return max(self.kld.value, LEAST)


class Box(NamedTuple):
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The shared area, 0 where the two are apart."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


class Plot(NamedTuple):
    """A picture: its file, what it shows in words, whether a release has what it takes, and how it is drawn."""

    file: str
    alt: str
    has: Callable[[Release], bool]
    draw: Callable[[Release], bytes]


def plots(release: Release) -> list[Plot]:
    """The pictures of a release."""
    return [plot for plot in PLOTS if plot.has(release)]


@contextmanager
def _drawing(out: io.BytesIO, height: float, title: str, below: float = 0.62) -> Iterator[Axes]:
    """Axes of a figure WIDTH by so many inches, with room for a title above and `below`, which ends up in `out` as SVG."""
    import matplotlib.style
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "hubq", "svg.fonttype": "none", "font.size": FONT, "axes.edgecolor": INK, "text.color": INK}
    settings |= {"axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "figure.dpi": 72, "axes.unicode_minus": False}
    with matplotlib.style.context(["default", settings]):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.8 / WIDTH, below / height, 1 - 1.0 / WIDTH, 1 - (below + 0.45) / height))
        axes.set_title(title, parse_math=False, fontsize=11)
        yield axes
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})


def _model(release: Release) -> str:
    return _printable(release.source.rsplit("/", 1)[-1])


def _unit(release: Release) -> tuple[str, float]:
    """The unit of sizes, and its bytes."""
    return ("GB", 1e9) if max((file.size for file in release.artifacts), default=0) >= 1e9 else ("MB", 1e6)


def _name(level: str) -> str:
    return level.partition(":")[2]


# --- loss.svg ---


def _series(release: Release) -> dict[str, list[Point]]:
    """The points of each engine that has some."""
    series = {engine: list(_points(release, engine, _unit(release)[1])) for engine in compare.engines(release)}
    return {engine: points for engine, points in series.items() if points}


def loss_svg(release: Release) -> bytes:
    """Mean KL divergence (log scale, ± 1 standard error) over file size, one series per engine; a line joins the files that no
    smaller one beats."""
    series, out, best = _series(release), io.BytesIO(), {_name(level) for level in compare.pareto(release)}
    with _drawing(out, 4.8, f"{_model(release)}: file size and divergence from the reference") as axes:
        _scatter(axes, series)
        line = sorted(point for point in next(iter(series.values())) if point.level in best)
        axes.plot([p.size for p in line], [p.y for p in line], color=SERIES[0][0], linewidth=0.8, alpha=0.6, zorder=1)
        _dress(axes, _unit(release)[0], legend=len(series) > 1)
        _label(axes, series)
    return out.getvalue()


def _printable(text: str) -> str:
    """Without the control characters that XML forbids."""
    return "".join(ch for ch in text if unicodedata.category(ch)[0] != "C")[:40]


def _points(release: Release, engine: str, divisor: float) -> Iterator[Point]:
    measured = {row.level: row.values["kld"] for row in release.measurements if row.engine == engine and "kld" in row.values}
    for file in release.artifacts:
        kld = measured.get(file.level)
        if kld and math.isfinite(kld.value):
            yield Point(file.size / divisor, _printable(_name(file.level)), kld)


def _scatter(axes: Axes, series: dict[str, list[Point]]) -> None:
    axes.set_yscale("log", nonpositive="clip")
    every = [point for points in series.values() for point in points]
    axes.set_xscale("log")
    low, high = min(point.size for point in every), max(point.size for point in every)
    margin = max((high / low) ** 0.08, 1.01)
    axes.set_xlim(low / margin, high * margin)
    axes.set_ylim(
        min(point.y for point in every) / 1.7, max(point.y for point in every) * 1.7
    )  # a tick at 1, 2 or 5 is in sight
    for number, (engine, points) in enumerate(series.items()):
        colour, marker, filled = SERIES[number % len(SERIES)]
        axes.errorbar(
            [point.size for point in points],
            [point.y for point in points],
            yerr=[point.kld.stderr if math.isfinite(point.kld.stderr) else 0.0 for point in points],
            fmt=marker, color=colour, markerfacecolor=colour if filled else "none", markersize=5 if filled else 8,
            elinewidth=1, capsize=3, label=_printable(engine),
        )  # fmt: skip


def _dress(axes: Axes, unit: str, legend: bool) -> None:
    """Titles, ticks and room for the labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_xlabel(f"File size, {unit} (log scale)")
    axes.set_ylabel("Mean KL divergence, nats per token (± 1 standard error)")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, loc="upper right")


def _number(value: float) -> str:
    """A tick's label; points of no more than LEAST are drawn at it."""
    text = f"{value:g}".replace("e-0", "e-")
    return f"≤ {text}" if value < 1.01 * LEAST else text


def _label(axes: Axes, series: dict[str, list[Point]]) -> None:
    """Each level's name once, beside its highest point, at the nearest place that covers neither a point nor a name."""
    spots = [(point, axes.transData.transform((point.size, point.y))) for points in series.values() for point in points]
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for _, (x, y) in spots]
    highest: dict[str, tuple[float, float]] = {}
    for point, (x, y) in spots:
        highest[point.level] = max(highest.get(point.level, (y, x)), (y, x))
    legend = axes.get_legend()
    if legend:
        taken.append(Box(*legend.get_window_extent().extents))
    frame = Box(*axes.bbox.extents)
    for level, (y, x) in sorted(highest.items(), key=lambda item: item[1]):
        dx, dy, box = _place(level, x, y, taken, frame)
        taken += [box, *_leader(x, y, dx, dy)]
        axes.annotate(
            level, (x, y), (dx, dy), xycoords="figure pixels", textcoords="offset points", parse_math=False,
            ha="center", va="center", arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip


def _place(text: str, x: float, y: float, taken: list[Box], frame: Box) -> tuple[float, float, Box]:
    """The offset of a text's centre from its point (points), and the rectangle it then covers."""
    half_width, half_height = 0.35 * FONT * len(text), 0.6 * FONT
    best = (math.inf, 0.0, 0.0, frame)
    for gap in (8, 14, 20, 28, 36, 44):
        for right, up in DIRECTIONS:
            dx, dy = right * (gap + half_width), up * (gap + half_height)
            box = Box(x + dx - half_width, y + dy - half_height, x + dx + half_width, y + dy + half_height)
            cost = 4 * half_width * half_height - box.overlap(frame)  # what lies outside
            cost += sum(part.overlap(other) for part in (box, *_leader(x, y, dx, dy)) for other in taken)
            best = min(best, (cost, dx, dy, box), key=lambda spot: spot[0])
            if best[0] < 1e-6:
                return best[1:]
    return best[1:]


def _leader(x: float, y: float, dx: float, dy: float) -> list[Box]:
    """Squares along the line from a point to its name, beyond the point's own marker."""
    length = math.hypot(dx, dy)
    steps = [step / length for step in range(10, int(length), 5)]
    return [Box(x + s * dx - 1, y + s * dy - 1, x + s * dx + 1, y + s * dy + 1) for s in steps]


# --- levels.svg ---


def _ratios(release: Release) -> list[Measurement]:
    """The files' measurements in the engine that users run, best level first, where they have PPL ratios."""
    return [row for row, _ in compare.measured(release) if LN in row.per_window]


def _percent(release: Release, row: Measurement) -> tuple[float, float, float]:
    """By how many percent a file's PPL exceeds the reference's: its 95 % interval's beginning, the estimate, its end."""
    means = np.array(row.per_window[LN])
    half = half_width(means, compare.drawn_from(release))
    low, value, high = (100 * math.expm1(float(means.mean()) + step) for step in (-half, 0.0, half))
    return low, value, high


def levels_svg(release: Release) -> bytes:
    """The change of perplexity by level in percent, with its 95 % interval, and the band of the loss that is recommended."""
    rows, within, chosen, out = _ratios(release), 100 * release.within, compare.recommended(release), io.BytesIO()
    with _drawing(out, 1.3 + 0.27 * len(rows), f"{_model(release)}: loss by level") as axes:
        spans = [_percent(release, row) for row in rows]
        _percents(axes, [end for span in spans for end in span], within)
        axes.axvspan(axes.get_xlim()[0], within, color=SERIES[2][0], alpha=0.15, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, (low, value, high) in enumerate(spans):
            picked = bool(chosen and chosen.file and chosen.file.level == rows[place].level)
            axes.plot([low, high], [place, place], color=SERIES[0][0], linewidth=1.5, solid_capstyle="butt")
            axes.plot([value], [place], marker="o", color=SERIES[0][0], markersize=8 if picked else 5)
        _rows(axes, [row.level for row in rows])
        axes.set_xlabel(f"Perplexity against the reference's, with 95 % interval (green: within {within:g} %)")
    return out.getvalue()


def _percents(axes: Axes, ends: list[float], within: float) -> None:
    """An axis of percent from the lowest to the highest of `ends`, which is logarithmic beyond `within` where they go far."""
    from matplotlib.ticker import NullLocator

    low, high = min(*ends, 0.0), max(*ends, 1.2 * within)
    if max(high, -low) > 10 * within:
        axes.set_xscale("symlog", linthresh=within)
        axes.set_xlim(min(1.3 * low, -0.3 * within), 1.3 * high)
        first, last = axes.get_xlim()
        axes.set_xticks([tick for tick in (-within, 0, within, *TICKS) if first <= tick <= last and not 0 < tick < within])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.06 * (high - low)
        axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g} %" if value else "0")


def _rows(axes: Axes, levels: list[str]) -> None:
    """Levels down the side, the first one on top."""
    axes.set_yticks(range(len(levels)), [_printable(_name(level)) for level in levels], parse_math=False)
    axes.set_ylim(len(levels) - 0.5, -0.5)
    axes.grid(True, axis="x", which="major", color=INK, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


# --- bytes.svg ---


def bytes_svg(release: Release) -> bytes:
    """The size of each file by what its tensors belong to."""
    files, out, (unit, divisor) = [file for file in release.artifacts if file.groups], io.BytesIO(), _unit(release)
    names = list(dict.fromkeys(name for file in files for name in file.groups))
    names.sort(key="other".__eq__)
    with _drawing(out, 1.65 + 0.27 * len(files), f"{_model(release)}: what takes the bytes", 0.85) as axes:
        left = np.zeros(len(files))
        for name, colour in zip(names, PALETTE, strict=False):
            sizes = np.array([file.groups.get(name, 0) / divisor for file in files])
            axes.barh(range(len(files)), sizes, left=left, height=0.62, color=colour, label=name)
            left += sizes
        _rows(axes, [file.level for file in files])
        axes.set_xlabel(f"Weights, {unit}")
        _legend(axes)
    return out.getvalue()


def _legend(axes: Axes) -> None:
    """Colours and names in a line below the axis' title."""
    inches = axes.bbox.height / 72
    place = (0.45, -0.42 / inches)
    legend = axes.legend(
        frameon=False, loc="upper center", bbox_to_anchor=place, ncols=len(PALETTE), handlelength=1, columnspacing=1.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


PLOTS = (
    Plot(
        "loss.svg",
        "File size against mean KL divergence from the reference, one point per file",
        lambda release: bool(_series(release)),
        loss_svg,
    ),
    Plot(
        "levels.svg",
        "Perplexity against the reference's in percent, one line per level with its 95 % interval",
        lambda release: bool(_ratios(release)),
        levels_svg,
    ),
    Plot(
        "bytes.svg",
        "Bytes of each file by what its tensors belong to",
        lambda release: any(file.groups for file in release.artifacts),
        bytes_svg,
    ),
)
