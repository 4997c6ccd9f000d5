"""Charts of the report page: matplotlib's SVG, in the colours of the page.

Matplotlib places everything; the shapes are then copied without their styles into a small SVG
element whose classes the page's style sheet colours, in light and in dark. Lengths are units of
the view box, which the page scales.
"""

import io
import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvmae.figures.charts import STYLE, Level, Line, Panel, draw_axes

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 16.0, 14.0, 42.0
MAX_POINTS = 360  # of a line: more than one for each unit cannot be seen
COLOURS = 6  # of style.css: --line-0 to --line-5
DASHES = ("none", "7 4", "2 4", "10 4 2 4", "14 5", "5 3 1 3 1 3")
PAGE_STYLE = STYLE | {
    "font.size": 13,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "axes.labelsize"), 13),
    "xtick.major.pad": 9,
    "path.simplify": False,  # the page reads values from the points; `thin` drops some instead
    "axes.ymargin": 0.0,
    "axes.autolimit_mode": "round_numbers",
}
NAMESPACE = "{http://www.w3.org/2000/svg}"


def draw(panel: Panel, *, label: str, x_label: str, axis: str = "steps") -> str:
    """Draw a panel as an SVG element.

    Args:
        panel: At least one line. Lines of the same colour have different dashes.
        label: What the chart shows, for people who do not see it.
        x_label: Below the x axis.
        axis: The unit of x; the attribute data-axis, by which the page shows one of several.
    """
    with mpl.rc_context(PAGE_STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        size = (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - TOP - BOTTOM) / HEIGHT
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, *size))
        for number, line in enumerate(panel.lines):
            _draw_line(axes, line, number)
        kept = [thin(level.y) for level in panel.levels]
        levels = [
            Level(level.x[at], level.y[at], level.name)
            for level, at in zip(panel.levels, kept, strict=True)
        ]
        draw_axes(axes, panel._replace(levels=levels), None)
        axes.set_xlabel(x_label, gid="axis-name")
        axes.spines["bottom"].set_gid("base")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    low, high = axes.get_ylim()
    kind = "log" if panel.log_x else "linear"
    first, last = axes.get_xlim()
    attributes = {
        "class": "plot",
        "viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}",
        "role": "img",
        "aria-label": label,
        "data-axis": axis,
        "data-x": f"{first:.8g} {last:.8g} {LEFT:g} {WIDTH - RIGHT:g} {kind}",
        "data-y": f"{low:.8g} {high:.8g} {HEIGHT - BOTTOM:g} {TOP:g} linear",
    }
    root = Element("svg", attributes)
    root.extend(_shapes(ElementTree.fromstring(stream.getvalue()), "", panel))
    cursor = {"class": "cursor", "visibility": "hidden"}
    root.append(Element("line", cursor, y1=f"{TOP:g}", y2=f"{HEIGHT - BOTTOM:g}"))
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _draw_line(axes: Axes, line: Line, number: int) -> None:
    """Draw a line, its band, and a dot for each point without neighbours."""
    if line.spread is not None:
        known = np.isfinite(line.y) & np.isfinite(line.spread)
        x, y, spread = (one[known] for one in (line.x, line.y, line.spread))
        outline = np.concatenate([y + spread, (y - spread)[::-1]])
        axes.fill(np.concatenate([x, x[::-1]]), outline, gid=f"band-{number}")
    kept = thin(line.y)
    x, y = line.x[kept], line.y[kept]
    is_known = np.isfinite(y)
    if is_known.any():
        axes.plot(x, y, gid=f"line-{number}")
    padded = np.concatenate([[False], is_known, [False]])
    alone = is_known & ~padded[:-2] & ~padded[2:]
    if alone.any():
        axes.plot(x[alone], y[alone], "o", gid=f"dot-{number}")


def thin(y: np.ndarray) -> np.ndarray:
    """Return the places of few enough points to draw: of each stretch its lowest and highest."""
    if len(y) <= MAX_POINTS:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for stretch in np.array_split(np.arange(len(y)), MAX_POINTS // 2):
        known = stretch[np.isfinite(y[stretch])]
        if len(known):
            kept |= {int(known[y[known].argmin()]), int(known[y[known].argmax()])}
        else:
            kept.add(int(stretch[0]))  # keeps the gap
    return np.array(sorted(kept))


def dash(style: int) -> str:
    """Return the dash of a line; lines that share a colour have different ones."""
    return DASHES[(style + style // COLOURS) % len(DASHES)]


def _shapes(node: Element, kind: str, panel: Panel) -> Iterator[Element]:
    """Copy the shapes below a node, with classes in place of styles.

    Args:
        node: Of matplotlib's SVG.
        kind: The nearest group's name: one that we gave, or matplotlib's.
        panel: Whose lines are drawn.
    """
    for child in node:
        tag = child.tag.removeprefix(NAMESPACE)
        if tag == "g":
            yield from _shapes(child, _kind(child, kind), panel)
            continue
        name, _, number = kind.partition("-") if kind[-1:].isdigit() else (kind, "", "")
        attributes = {"class": name}
        if number:
            line = panel.lines[int(number)]
            attributes = {"class": f"{name} {name}-{line.run % COLOURS}"}
            # The page's script reads the name of a line.
            named = {"data-name": line.name, "stroke-dasharray": dash(line.run)}
            attributes |= named if name == "line" else {}
        if tag == "text":
            anchor = re.findall(r"text-anchor: (\w+)", child.get("style", ""))
            at = {key: _short(child.get(key, "")) for key in ("x", "y")}
            text = Element(
                "text", attributes | at | {"text-anchor": anchor[0] if anchor else "start"}
            )
            text.text = child.text
            yield text
        elif tag == "path" and name in ("line", "band", "level", "grid", "base"):
            yield Element("path", attributes | {"d": _short(child.get("d", ""))})
        elif tag == "use" and name == "dot":
            place = {f"c{key}": _short(child.get(key, "")) for key in ("x", "y")}
            yield Element("circle", attributes | place | {"r": "4"})


def _kind(group: Element, outer: str) -> str:
    name = group.get("id", "")
    if name.startswith(("xtick", "ytick")):
        return "tick"
    if name.startswith("line2d") and outer == "tick":
        return "grid"
    is_ours = re.fullmatch(r"(line|band|dot)-\d+|level|level-name|axis-name|base", name)
    return name if is_ours else outer


def _short(numbers: str) -> str:
    """Round every number to hundredths of a unit."""
    rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}", numbers)
    return " ".join(rounded.split())
