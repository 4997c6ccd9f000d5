"""The mark in files that commands write, and which files may be replaced."""

import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mvmae.errors import UserError
from mvmae.storage import outputs


def picture(kind: str) -> bytes:
    figure = Figure(figsize=(1, 1))
    FigureCanvasAgg(figure)
    figure.add_axes((0, 0, 1, 1)).plot([0, 1])
    stream = io.BytesIO()
    figure.savefig(stream, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_only_pictures_with_the_mark_are_ours(tmp_path, kind):
    file = tmp_path / f"a.{kind}"
    file.write_bytes(picture(kind))
    assert not outputs.is_ours(file)
    with pytest.raises(UserError, match="has no mark of mvmae, so it is not replaced"):
        outputs.require_output(file)
    file.write_bytes(outputs.add_mark(file.read_bytes()))
    assert outputs.is_ours(file)
    outputs.require_output(file)


def test_a_marked_png_is_a_whole_png_of_the_same_pixels():
    plain = Image.open(io.BytesIO(picture("png")))
    ours = Image.open(io.BytesIO(outputs.add_mark(picture("png"))))
    ours.load()  # which verifies the sums of chunks
    assert ours.tobytes() == plain.tobytes()
    assert b"Software\0mvmae" in outputs.add_mark(picture("png"))[:80]


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        ('{\n "command": "data check",\n "x": 1}', True),
        ('{\n  "command": "data stats"}', True),
        ('{"command": "knn"}', False),
        ('{"mine": "data check"}', False),
        ("path,part,label,severity,finding\n", True),
        ("path,label\na.png,cat\n", False),
        ("", True),
    ],
)
def test_tables_are_known_by_their_beginning(tmp_path, content, ours):
    file = tmp_path / "a.json"
    file.write_text(content)
    assert outputs.is_ours(file) == ours


def test_a_file_goes_where_one_can_be_made(tmp_path):
    outputs.require_writable(tmp_path / "new" / "folder" / "a.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for file, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "a.png", "file is a file, not a folder"),
    ):
        with pytest.raises(UserError, match=says):
            outputs.require_writable(file)
