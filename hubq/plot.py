"""The picture of a card: file size against KL divergence from the reference, as an SVG that is the same bytes every time."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from hubq.nouns import Estimate, Release

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Mid tones that keep a contrast of about 4:1 on white and on near black: a page's dark theme is often a class of the page,
# which an image cannot see, so `prefers-color-scheme` would be wrong exactly where it matters.
INK = "#777777"
SERIES = (("#2f7fc1", "o", True), ("#c0602a", "D", False), ("#4f8a3c", "s", False))
FLOOR = 1e-5  # nats per token; zero has no logarithm, and below this little but an engine's rounding is left
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), *((x, y) for y in (1, -1, 0.5, -0.5) for x in (1, -1)), (0.5, 1), (-0.5, -1))
FONT = 9.0  # points, which are the SVG's user units at 72 dots per inch


class Point(NamedTuple):
    """One file in one engine: `size` in the axis' unit, mean KL divergence in nats per token."""

    level: str
    size: float
    kld: Estimate

    @property
    def y(self) -> float:
        """Where the point is drawn."""
        return max(self.kld.value, FLOOR)


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


def loss_svg(release: Release, engines: Iterable[str]) -> bytes | None:
    """Mean KL divergence (log scale, ± 1 standard error) over file size, one series per engine; None if unmeasured."""
    unit, divisor = ("GB", 1e9) if max((file.size for file in release.artifacts), default=0) >= 1e9 else ("MB", 1e6)
    series = {engine: list(_points(release, engine, divisor)) for engine in engines}
    series = {engine: points for engine, points in series.items() if points}
    if not series:
        return None
    return _draw(series, _printable(release.source.rsplit("/", 1)[-1]), unit)


def _printable(text: str) -> str:
    """Without the control characters that XML forbids."""
    return "".join(ch for ch in text if unicodedata.category(ch)[0] != "C")[:40]


def _points(release: Release, engine: str, divisor: float) -> Iterator[Point]:
    measured = {row.level: row.values["kld"] for row in release.measurements if row.engine == engine and "kld" in row.values}
    for file in release.artifacts:
        kld = measured.get(file.level)
        if kld and math.isfinite(kld.value):
            yield Point(file.level.partition(":")[2], file.size / divisor, kld)


def _draw(series: dict[str, list[Point]], model: str, unit: str) -> bytes:
    import matplotlib.style
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "hubq", "svg.fonttype": "none", "font.size": FONT, "axes.edgecolor": INK, "text.color": INK}
    settings |= {"axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "figure.dpi": 72, "axes.unicode_minus": False}
    with matplotlib.style.context(["default", settings]):
        figure = Figure(figsize=(8, 5.2))
        axes = figure.add_axes((0.1, 0.12, 0.87, 0.78))
        _scatter(axes, series)
        _dress(axes, model, unit, legend=len(series) > 1)
        _label(axes, series)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": axes.get_title()})
    return out.getvalue()


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


def _dress(axes: Axes, model: str, unit: str, legend: bool) -> None:
    """Titles, ticks and room for the labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_title(f"{model}: file size and divergence from the reference", parse_math=False, fontsize=11)
    axes.set_xlabel(f"File size, {unit} (log scale)")
    axes.set_ylabel("Mean KL divergence, nats per token (± 1 standard error)")
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
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
    """A tick's label; points of no more than FLOOR are drawn at it."""
    text = f"{value:g}".replace("e-0", "e-")
    return f"≤ {text}" if value < 1.01 * FLOOR else text


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
