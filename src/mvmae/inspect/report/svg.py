"""Line charts as SVG that follows the page's colours; no plotting library, no number lost.

Lengths are in the units of the view box; the page scales it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, floor, isfinite, log10, nan
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 16.0, 14.0, 42.0
MOST_POINTS = 360  # of a line: more than a point for each unit cannot be seen
DASHES = ("", "7 4", "2 4", "10 4 2 4", "14 5", "5 3 1 3 1 3")
COLOURS = 6  # of style.css: --line-0 to --line-5


class Line(NamedTuple):
    """One line of a chart; values that are not finite leave a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: int = 0
    """Colour and dash, counted from 0."""

    spread: Sequence[float] = ()
    """Half the height of a band around the line, at every point; none: no band."""


class Level(NamedTuple):
    """A height to compare with, drawn from side to side."""

    name: str
    y: float


class Scale(NamedTuple):
    """From values to places along one axis."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high, at = (
            (log10(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)


def draw(
    lines: Sequence[Line],
    *,
    label: str,
    x_name: str,
    levels: Sequence[Level] = (),
    log_x: bool = False,
    axis: str = "steps",
) -> Markup:
    """An SVG element.

    Args:
        lines: What to draw; those without a finite value are left out.
        label: What the chart shows, for those who do not see it.
        x_name: Under the x axis.
        levels: Heights to compare with.
        log_x: Whether x is on a logarithmic scale, with a tick at every point; x must be positive.
        axis: Kept as data-axis, by which the page shows one of several.
    """
    x, y = scales(lines, levels, log_x=log_x)
    parts = [_grid(x, y, ticks_of(lines) if log_x else nice_ticks(x.low, x.high, 6))]
    parts += [_level(level, y, lines) for level in levels if isfinite(level.y)]
    parts += [_band(line, x, y) for line in lines if line.spread]
    parts += [_path(line, x, y) + _dots(line, x, y) for line in lines]
    return Markup(
        '<svg class="plot" viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{label}" '
        'data-axis="{axis}" data-x="{x}" data-y="{y}">{body}'
        '<line class="cursor" y1="{top:g}" y2="{bottom:g}" visibility="hidden"/>'
        '<text class="axis-name" x="{middle:g}" y="{under:g}" text-anchor="middle">{x_name}</text>'
        "</svg>"
    ).format(
        w=WIDTH,
        h=HEIGHT,
        label=label,
        axis=axis,
        x=_numbers(x),
        y=_numbers(y),
        body=Markup("").join(parts),
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        middle=(LEFT + WIDTH - RIGHT) / 2,
        under=HEIGHT - 5,
        x_name=x_name,
    )


def scales(
    lines: Sequence[Line], levels: Sequence[Level] = (), *, log_x: bool = False
) -> tuple[Scale, Scale]:
    """The scales of both axes: x as wide as the lines, y as high as lines, bands and levels."""
    xs, ys = [], [float(level.y) for level in levels if isfinite(level.y)]
    for line in lines:
        for at, (x, y) in enumerate(zip(line.xs, line.ys, strict=True)):
            if isfinite(x) and isfinite(y):
                xs.append(float(x))
                spread = float(line.spread[at]) if line.spread else 0.0
                ys += [y - spread, y + spread]
    low, high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    if low == high:
        low, high = (low / 2, high * 2) if log_x else (min(0.0, low), max(high, low + 1))
    elif not log_x and 0 < low < high / 8:
        low = 0.0  # runs begin there; the first line of metrics is a few steps later
    bottom, top = nice_range(min(ys), max(ys)) if ys else (0.0, 1.0)
    return (
        Scale(low, high, LEFT + 8, WIDTH - RIGHT - 8, log_x),
        Scale(bottom, top, HEIGHT - BOTTOM, TOP),
    )


def nice_step(span: float, count: int) -> float:
    """1, 2 or 5 times a power of ten, so that about `count` of them make the span."""
    raw = span / count
    power = 10.0 ** floor(log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def nice_range(low: float, high: float) -> tuple[float, float]:
    """Round values around a range; a flat line gets room on both sides."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-6):
        room = max(abs(low) * 0.1, 1e-6)
        low, high = low - room, high + room
    step = nice_step(high - low, 5)
    return floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values in a range."""
    step = nice_step(high - low, count)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def ticks_of(lines: Sequence[Line]) -> list[float]:
    """The x of every point, those that would be written over another left out."""
    values = sorted({float(x) for line in lines for x in line.xs if isfinite(x)})
    kept: list[float] = []
    for value in values:
        if not kept or value / kept[-1] > 1.6:
            kept.append(value)
    return kept


def number(value: float) -> str:
    """A value at a tick, short: 1,500 and 2M and 0.05."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if letter == "k" else size
            return f"{value / unit:.4g}{letter}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _numbers(scale: Scale) -> str:
    """A scale as the script reads it: values, places, kind."""
    kind = "log" if scale.log else "linear"
    return f"{scale.low:.8g} {scale.high:.8g} {scale.begin:g} {scale.end:g} {kind}"


def _grid(x: Scale, y: Scale, x_ticks: Sequence[float]) -> Markup:
    rows = Markup("").join(
        Markup(
            '<line class="grid" x1="{x1:g}" x2="{x2:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
            '<text class="tick" x="{text:g}" y="{low:.1f}" text-anchor="end">{value}</text>'
        ).format(x1=LEFT, x2=WIDTH - RIGHT, at=at, text=LEFT - 7, low=at + 4.5, value=number(value))
        for value in nice_ticks(y.low, y.high, 5)
        for at in [y.place(value)]
    )
    columns = Markup("").join(
        Markup(
            '<text class="tick" x="{x:.1f}" y="{y:g}" text-anchor="middle">{value}</text>'
        ).format(x=x.place(value), y=HEIGHT - BOTTOM + 18, value=number(value))
        for value in x_ticks
    )
    base = Markup('<line class="base" x1="{:g}" x2="{:g}" y1="{:g}" y2="{:g}"/>').format(
        LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM
    )
    return rows + base + columns


def _level(level: Level, y: Scale, lines: Sequence[Line]) -> Markup:
    """A dashed height with its name at the right, under it where there is no room over it."""
    at = y.place(level.y)
    ends = (at - y.place(line.ys[-1]) for line in lines if line.ys and isfinite(line.ys[-1]))
    crowded = any(0 < end < 24 for end in ends) and at + 18 < HEIGHT - BOTTOM
    over = at - 5 if at - TOP > 16 and not crowded else at + 15
    return Markup(
        '<line class="level" data-name="{name}" x1="{x1:g}" x2="{x2:g}" y1="{at:.2f}" '
        'y2="{at:.2f}"/>'
        '<text class="level-name" x="{x2:g}" y="{over:.1f}" text-anchor="end">{name} {value}</text>'
    ).format(name=level.name, x1=LEFT, x2=WIDTH - RIGHT, at=at, over=over, value=f"{level.y:.3g}")


def dash(style: int) -> str:
    """The dash of a style; those that share a colour have others."""
    return DASHES[(style + style // COLOURS) % len(DASHES)] or "none"


def _path(line: Line, x: Scale, y: Scale) -> Markup:
    points = thinned(line)
    if not any(isfinite(value) for _, value in points):
        return Markup("")
    return Markup(
        '<path class="line line-{colour}" data-name="{name}" stroke-dasharray="{dash}" d="{d}"/>'
    ).format(
        colour=line.style % COLOURS,
        name=line.name,
        dash=dash(line.style),
        d=" ".join(_segments(points, x.place, y.place)),
    )


def _dots(line: Line, x: Scale, y: Scale) -> Markup:
    """A dot for each point without neighbours, which a line cannot show."""
    points = [(nan, nan), *thinned(line), (nan, nan)]
    is_there = [isfinite(at) and isfinite(value) for at, value in points]
    alone = [
        points[at]
        for at in range(1, len(points) - 1)
        if is_there[at] and not is_there[at - 1] and not is_there[at + 1]
    ]
    return Markup("").join(
        Markup('<circle class="dot dot-{}" cx="{:.2f}" cy="{:.2f}" r="4"/>').format(
            line.style % COLOURS, x.place(at), y.place(value)
        )
        for at, value in alone
    )


def _segments(
    points: Sequence[tuple[float, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> Iterator[str]:
    """Pieces of a path between gaps; a point alone is closed upon itself."""
    piece: list[str] = []
    for at, value in [*points, (nan, nan)]:
        if isfinite(at) and isfinite(value):
            piece.append(f"{x(at):.2f},{y(value):.2f}")
        elif piece:
            yield f"M{piece[0]}Z" if len(piece) == 1 else f"M{piece[0]}L{' '.join(piece[1:])}"
            piece = []


def thinned(line: Line) -> list[tuple[float, float]]:
    """The points of a line, few enough to draw: of each stretch its lowest and its highest."""
    points = [(float(x), float(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    if len(points) <= MOST_POINTS:
        return points
    kept = {0, len(points) - 1}
    stretches = MOST_POINTS // 2
    for part in range(stretches):
        begin, end = (len(points) * edge // stretches for edge in (part, part + 1))
        finite = [at for at in range(begin, end) if isfinite(points[at][1])]
        if not finite:
            kept.add(begin)  # keeps the gap
            continue
        kept |= {
            min(finite, key=lambda at: points[at][1]),
            max(finite, key=lambda at: points[at][1]),
        }
    return [points[at] for at in sorted(kept)]


def _band(line: Line, x: Scale, y: Scale) -> Markup:
    edges = [
        (x.place(float(at)), y.place(float(value - spread)), y.place(float(value + spread)))
        for at, value, spread in zip(line.xs, line.ys, line.spread, strict=True)
        if isfinite(at) and isfinite(value) and isfinite(spread)
    ]
    outline = [f"{at:.1f},{high:.1f}" for at, _, high in edges]
    outline += [f"{at:.1f},{low:.1f}" for at, low, _ in reversed(edges)]
    return Markup('<polygon class="band band-{}" points="{}"/>').format(
        line.style % COLOURS, " ".join(outline)
    )


def swatch(style: int) -> Markup:
    """A short piece of a line, for a legend."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true">'
        '<path class="line line-{}" stroke-dasharray="{}" d="M1,4L29,4"/></svg>'
    ).format(style % COLOURS, dash(style))
