"""Text in figures: what the font can draw, how wide it is, and how it is shortened or wrapped.

Lengths are in inches, sizes in points.
"""

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import TextToPath

INK, FAINT, ACCENT = "#1f2933", "#66707a", "#00796b"
FONT, BOLD = "DejaVu Sans", 1.15  # bold letters are wider by this factor
MAX_LENGTH = 200  # characters of a text, of which the rest is left out before it is measured


def shorten(text: str, inches: float, points: float) -> str:
    """Make a text drawable, and leave out its middle where it is too wide."""
    text = drawable(text)
    if len(text) > MAX_LENGTH:
        text = f"{text[: MAX_LENGTH // 2]}…{text[-MAX_LENGTH // 2 :]}"
    # Both ends stay: paths begin with their run and end with their file.
    short, kept = text, len(text)
    while kept > 2 and text_width(short, points) > inches:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def text_width(text: str, points: float) -> float:
    """Return the width of a line; small letters are drawn up to 6 % wider than measured."""
    font = FontProperties(family=FONT, size=points)
    return 1.06 * TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def drawable(text: str) -> str:
    """Put a text on one line, with a question mark for each character that the font lacks."""
    # For a missing character matplotlib would warn on stderr and draw an empty box.
    glyphs = get_font(findfont(FONT)).get_charmap()
    return "".join(letter if ord(letter) in glyphs else "?" for letter in " ".join(text.split()))


def wrap(text: str, room: float, points: float) -> list[str]:
    """Break a text into lines that are no wider than the room."""
    lines: list[str] = []
    for word in (shorten(word, room, points) for word in drawable(text).split()):
        if lines and text_width(f"{lines[-1]} {word}", points) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
