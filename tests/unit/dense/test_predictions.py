"""Output folders of predictions: foreign files, unique names, links and mounted disks."""

from pathlib import Path

import pytest
from PIL import Image

from mvmae.config.detect import DetectConfig
from mvmae.config.segment import SegmentConfig
from mvmae.data.sources.folders import Files
from mvmae.dense.saved_model import open_images, prediction_names, require_replaceable, write_aside
from mvmae.errors import UserError

OWNED = {"predictions.json": "", "pictures": ".png", "skipped.csv": ""}
MARK = "predictions.json"


def write_predictions(folder: Path, *more: str) -> Path:
    """Write a folder of predictions, and other files."""
    for name in (MARK, "pictures/a.png", *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    return folder


def make_source(*paths: str) -> Files:
    return Files("some", paths, 3)


# Folders that may be replaced


@pytest.mark.parametrize(
    "foreign", ["my_thesis.txt", "pictures/notes.txt", "pictures/deep/song.mp3", "thesis/a.png"]
)
@pytest.mark.parametrize("with_skipped", [True, False])
def test_foreign_files_are_never_overwritten(tmp_path, foreign, with_skipped):
    more = [foreign, "skipped.csv"] if with_skipped else [foreign]
    out = write_predictions(tmp_path / "out", *more)
    with pytest.raises(UserError, match=r"holds other files \(.*\): choose an --out"):
        require_replaceable(out, OWNED, overwrite=True)
    assert (out / foreign).read_text() == "old"


def test_predictions_are_replaced_only_with_overwrite(tmp_path):
    out = write_predictions(tmp_path / "out")
    require_replaceable(out, OWNED, overwrite=True)
    with pytest.raises(UserError, match="already holds predictions"):
        require_replaceable(out, OWNED, overwrite=False)
    (out / MARK).unlink()  # now the pictures might be anybody's
    with pytest.raises(UserError, match=r"holds other files \(pictures\)"):
        require_replaceable(out, OWNED, overwrite=True)


def test_a_file_as_output_folder_is_rejected(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file: --out must name a folder"):
        require_replaceable(tmp_path / "out", OWNED, overwrite=True)


# Names


def test_names_are_paths_below_the_common_folder():
    source = make_source("/a/b/x.jpg", "/a/b/c/x.jpg", "/a/b/c/y.jpg", "/a/b/c/y.png")
    assert prediction_names(source) == ["x", "c/x", "c/y.jpg", "c/y.png"]


def test_names_are_unique():
    source = make_source("/a/x.jpg", "/a/x.png", "/a/x.jpg.tif")
    assert prediction_names(source) == ["x.jpg", "x.png", "x.jpg.tif"]


def test_relative_and_absolute_paths_can_be_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prediction_names(make_source("a/x.jpg", str(tmp_path / "b" / "x.jpg"))) == ["a/x", "b/x"]


def test_long_names_leave_room_for_a_suffix():
    names = prediction_names(make_source(f"/a/{'x' * 250}.jpg", f"/a/{'x' * 249}y.jpg", "/a/z.jpg"))
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 200
    assert names[2] == "z"


# Writing aside


def replace_predictions(out: Path) -> None:
    with write_aside(out, OWNED) as folder:
        (folder / MARK).write_text("new")
        (folder / "pictures").mkdir()
        (folder / "pictures" / "b.png").write_text("new")


def read_all(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_text() for path in files}


NEW = {MARK: "new", "pictures/b.png": "new"}


def test_a_new_folder_appears_on_success(tmp_path):
    replace_predictions(tmp_path / "deep" / "out")
    assert read_all(tmp_path) == {f"deep/out/{name}": text for name, text in NEW.items()}


def test_old_predictions_are_replaced(tmp_path):
    out = write_predictions(tmp_path / "out", "skipped.csv")
    replace_predictions(out)
    assert read_all(tmp_path / "out") == NEW


def test_a_linked_folder_stays_the_same_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    before = (tmp_path / "disk").stat().st_ino
    replace_predictions(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk").stat().st_ino == before  # it may be a mount point
    assert read_all(tmp_path / "disk") == NEW


@pytest.mark.parametrize("is_there", [True, False])
def test_a_failure_leaves_everything_unchanged(tmp_path, is_there):
    out = write_predictions(tmp_path / "out") if is_there else tmp_path / "out"
    before = read_all(tmp_path)

    def fail() -> None:
        with write_aside(out, OWNED) as folder:
            (folder / MARK).write_text("new")
            raise UserError("no image can be read")

    with pytest.raises(UserError):
        fail()
    assert read_all(tmp_path) == before
    assert out.exists() is is_there


@pytest.mark.parametrize("kind", [SegmentConfig, DetectConfig])
def test_predictions_cannot_be_resumed(kind, tmp_path):
    with pytest.raises(UserError, match="--predict cannot be resumed"):
        kind(encoder="run", predict="images", out=tmp_path, resume=True)
    with pytest.raises(UserError, match="--predict is empty"):
        kind(encoder="run", predict="", out=tmp_path)


# Images


def test_a_single_image_file_can_be_opened(tmp_path):
    Image.new("RGB", (5, 4), (9, 8, 7)).save(tmp_path / "one.png")
    source = open_images(str(tmp_path / "one.png"), 3)
    assert len(source) == 1
    assert source.read(0)[:, 0, 0].tolist() == [9, 8, 7]
    assert prediction_names(source) == ["one"]
    with pytest.raises(UserError, match=r"no such image: .*two\.png"):
        open_images(str(tmp_path / "two.png"), 3)
    (tmp_path / "text.md").write_text("")
    with pytest.raises(UserError, match="neither a folder nor a list"):
        open_images(str(tmp_path / "text.md"), 3)
