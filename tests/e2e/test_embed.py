"""`mvmae embed`: what it writes and refuses, how it resumes, what the search finds."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
import safetensors
import safetensors.numpy
import torch
from PIL import Image

from mvmae import encoders
from mvmae.cli.main import main
from mvmae.config.model import Size
from mvmae.data.sources.open import open_source
from mvmae.embed.storage import read_embeddings
from mvmae.encoders import OpenedEncoder, Preprocessing
from mvmae.errors import UserError
from mvmae.method.vit import Encoder, Variant, initialize

ENCODER = "random:vit_pico"
FORMATS = ["parquet", "npz", "safetensors"]


@pytest.fixture
def here(tmp_path, monkeypatch, image_folder) -> Path:
    """The working folder of the commands; it holds ten images of two classes."""
    image_folder(per_class=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def embed(*words: str, data: str = "images", out: str = "e", encoder: str = ENCODER) -> int:
    small = ["--image-size", "32"] if "--image-size" not in words else []
    always = ["--out", out, "--workers", "0", "--device", "cpu"]
    return main(["embed", encoder, data, *small, *always, *words])


def content(folder: Path | str) -> dict[str, bytes]:
    """Bytes of every file, without the times and the folder name."""
    files = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in Path(folder).rglob("*")
        if file.is_file()
    }
    own = re.sub(rb'(--out |"out": ")\S+?(?=[" ,])', b"", files["index.json"])
    files["index.json"] = re.sub(rb'"seconds": .*', b"", own)
    return files


def index(folder: Path | str = "e") -> dict:
    return json.loads(Path(folder, "index.json").read_text())


def whole(folder: Path | str = "e") -> tuple[list, list, np.ndarray]:
    """Paths, labels and embeddings of all parts."""
    parts = list(read_embeddings(folder))
    paths = [path for part in parts for path in part.paths]
    labels = [label for part in parts for label in part.labels]
    return paths, labels, np.concatenate([part.embeddings for part in parts])


def compute_expected(pool: str = "mean", data: str = "images", size=32, encoder: str = ENCODER):
    """The embeddings computed in another way: all images in one batch."""
    opened = encoders.open_encoder(encoder, size)
    source = open_source([data], opened.encoder.in_channels)
    found = encoders.compute_features(
        opened.encoder,
        source,
        opened.preprocessing,
        device=torch.device("cpu"),
        precision_name="fp32",
        batch_size=100,
        workers=0,
    )
    return getattr(found, pool).numpy()


def refuse(capsys, *words: str, says: str, **options: str) -> None:
    before = snapshot()
    assert embed(*words, **options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line), line
    assert len(line) < 400
    assert snapshot() == before


def snapshot() -> dict[str, bytes]:
    files = {str(file): file.read_bytes() for file in Path().rglob("*") if file.is_file()}
    return files | {str(file): b"" for file in Path().rglob("*") if file.is_dir()}


# output


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", ["mean", "cls"])
def test_every_format_returns_paths_labels_and_embeddings(here, format, tokens):
    assert embed("--format", format, "--tokens", tokens, "--part-size", "4") == 0
    paths, labels, rows = whole()
    assert paths == [f"images/{label}/{n}.jpg" for label in ("blue", "red") for n in range(5)]
    assert labels == ["blue"] * 5 + ["red"] * 5
    np.testing.assert_allclose(rows, compute_expected(tokens), rtol=1e-5, atol=1e-6)
    said = index()
    assert [part["rows"] for part in said["parts"]] == [4, 4, 2]
    assert said["complete"]
    assert (said["num_embedded"], said["num_skipped"]) == (10, 0)
    assert (said["tokens"], said["width"], said["grid"]) == (tokens, 64, [2, 2])
    assert said["digest"] == encoders.weights_digest(encoders.load_encoder(ENCODER, 32))
    assert said["classes"] == ["blue", "red"]
    names = [f"part-{n:05}.{format}" for n in range(3)]
    assert sorted(file.name for file in Path("e/parts").iterdir()) == names


@pytest.mark.parametrize("format", FORMATS)
def test_patch_tokens_average_to_the_mean_token(here, format):
    assert embed("--format", format, "--tokens", "patch") == 0
    rows = whole()[2]
    assert rows.shape == (10, 4, 64)
    np.testing.assert_allclose(rows.mean(axis=1), compute_expected(), rtol=1e-5, atol=1e-6)
    assert index()["shape"] == [4, 64]


def test_parquet_is_read_by_pyarrow_alone(here):
    assert embed("--part-size", "4") == 0
    assert embed("--query", "images/red/0.jpg") == 0  # adds neighbours.json and neighbours.png
    table = pyarrow.dataset.dataset("e/parts", format="parquet").to_table()
    assert table.column_names == ["path", "label", "embedding"]
    assert table.num_rows == 10
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 64)
    rows = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 64)
    assert np.array_equal(rows, whole()[2])


def test_npz_needs_no_pickle(here):
    assert embed("--format", "npz") == 0
    with np.load("e/parts/part-00000.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"paths", "labels", "embeddings"}
        assert arrays["paths"][-1] == "images/red/4.jpg"
        assert arrays["labels"].dtype.kind == "U"


def test_safetensors_hold_paths_and_labels(here):
    assert embed("--format", "safetensors") == 0
    with safetensors.safe_open("e/parts/part-00000.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["labels"])[0] == "blue"
        assert json.loads(file.metadata()["paths"])[0] == "images/blue/0.jpg"
        assert np.array_equal(file.get_tensor("embeddings"), whole()[2])


@pytest.mark.parametrize("format", FORMATS)
def test_float16_takes_half_the_space(here, format):
    assert embed("--format", format, "--dtype", "float16") == 0
    rows = whole()[2]
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(rows, compute_expected().astype(np.float16))


def test_bf16_is_stored_as_float32(here):
    assert embed("--precision", "bf16", "--tokens", "patch") == 0
    rows = whole()[2]
    assert rows.dtype == np.float32
    assert 0 < np.abs(rows.mean(axis=1) - compute_expected()).max() < 0.05
    assert index()["precision"] == "bf16"


@pytest.mark.parametrize("format", FORMATS)
def test_labels_are_none_without_classes(here, format):
    Path("flat").mkdir()
    shutil.copy("images/red/0.jpg", "flat/one.jpg")
    assert embed("--format", format, data="flat") == 0
    paths, labels, rows = whole()
    assert (paths, labels, rows.shape) == (["flat/one.jpg"], [None], (1, 64))
    assert index()["classes"] == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 elsewhere")
@pytest.mark.parametrize("format", FORMATS)
def test_file_names_that_are_not_utf8_are_escaped(here, format):
    Path("odd").mkdir()
    shutil.copy("images/red/0.jpg", os.fsdecode(b"odd/\xff \xc3\xa9.jpg"))
    assert embed("--format", format, "--query", "images/red/0.jpg", data="odd") == 0
    assert whole()[0] == ["odd/\\udcff é.jpg"]


def test_several_folders_form_one_set_of_images(here, capsys):
    assert main(f"embed {ENCODER} images/red images/blue --out e --image-size 32".split()) == 0
    assert index()["num_images"] == 10
    assert "images/red images/blue" in index()["command_line"]


def test_default_folder_is_beside_the_encoder(here, capsys):
    command = f"embed {ENCODER} images --image-size 32 --workers 0"
    assert main(command.split()) == 0
    assert index("runs/random-vit_pico/embeddings-images")["num_embedded"] == 10
    assert "10 images in 1 part" in " ".join(capsys.readouterr().out.split())


def test_the_command_in_the_index_reproduces_the_folder(here):
    assert embed("--part-size", "3", "--tokens", "cls", "--dtype", "float16") == 0
    command = index()["command_line"].split()
    assert command[0] == "mvmae"
    first = content("e")
    shutil.rmtree("e")
    assert main(command[1:]) == 0
    assert content("e") == first
    assert main(["embed", "--recipe", "e/index.json", "--out", "again"]) == 0
    assert content("again") == first


def save_encoder(folder: str, *, channels: int = 3, size=(16, 32), cls: bool = True) -> None:
    encoder = Encoder(
        Size(64, 1, 2),
        image_size=size,
        patch_size=8,
        in_channels=channels,
        variant=Variant(cls_token=cls),
    )
    initialize(encoder, torch.Generator().manual_seed(1))
    preprocessing = Preprocessing((0.5,) * channels, (0.25,) * channels, "bilinear")
    Path(folder).mkdir(exist_ok=True)
    encoders.save_encoder(Path(folder), OpenedEncoder(encoder, preprocessing, "mean"))


@pytest.mark.parametrize("channels", [1, 3])
def test_encoders_of_any_shape_embed_and_search(here, channels):
    save_encoder("enc", channels=channels)
    words = ("--out", "e", "--workers", "0", "--query", "images/red/3.jpg")
    assert main(["embed", "enc", "images", "--tokens", "patch", *words]) == 0
    assert whole()[2].shape == (10, 8, 64)
    assert index()["grid"] == [2, 4]
    with Image.open("e/neighbours.png") as picture:
        assert picture.width > picture.height


def test_class_token_is_refused_for_encoders_without_one(here, capsys):
    save_encoder("enc", cls=False)
    words = ("--image-size", "16")
    refuse(capsys, *words, "--tokens", "cls", encoder="enc", says="no class token.*mean or patch")
    assert embed(*words, encoder="enc") == 0
    assert index()["tokens"] == "mean"


# unreadable images


def test_unreadable_images_are_left_out_and_listed(here, capsys):
    Path("images/blue/2.jpg").write_bytes(b"no image")
    Path("images/red/9.jpg").write_bytes(b"")
    assert embed("--part-size", "3", "--batch-size", "2") == 0
    said = index()
    assert (said["num_embedded"], said["num_skipped"]) == (9, 2)
    assert [part["rows"] for part in said["parts"]] == [2, 3, 3, 1]
    paths = whole()[0]
    assert "images/blue/2.jpg" not in paths
    assert len(paths) == 9
    listed = Path("e/skipped.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in listed] == [
        "path",
        "images/blue/2.jpg",
        "images/red/9.jpg",
    ]
    assert "2 could not be read: e/skipped.csv" in " ".join(capsys.readouterr().out.split())


def test_a_part_without_readable_images_is_empty(here):
    for number in range(4):
        Path(f"images/blue/{number}.jpg").write_bytes(b"no image")
    for format in FORMATS:
        out = f"e-{format}"
        assert embed("--part-size", "2", "--format", format, out=out) == 0
        assert [part["rows"] for part in index(out)["parts"]] == [0, 0, 2, 2, 2]
        assert whole(out)[2].shape == (6, 64)
        assert embed("--query", "images/red/0.jpg", out=out) == 0


def test_mostly_unreadable_images_stop_and_leave_no_files(here, capsys):
    for file in list(Path("images").rglob("*.jpg"))[:6]:
        file.write_bytes(b"no image")
    refuse(capsys, "--part-size", "2", "--batch-size", "2", says="more than half of the 10 images")


def test_an_embedding_that_is_not_finite_stops_and_leaves_no_files(here, capsys):
    save_encoder("enc")
    opened = encoders.open_encoder("enc")
    opened.encoder.norm.bias.data[0] = 1e6
    encoders.save_encoder(Path("enc"), opened)
    words = ("--dtype", "float16", "--image-size", "16")
    refuse(
        capsys,
        *words,
        encoder="enc",
        says="an embedding that is not finite for .*try --dtype float32",
    )
    opened.encoder.norm.bias.data[0] = float("nan")
    encoders.save_encoder(Path("enc"), opened)
    refuse(capsys, "--image-size", "16", encoder="enc", says="weights .*damaged")


# resuming


@pytest.mark.parametrize("format", FORMATS)
def test_resume_restores_lost_and_damaged_parts_byte_for_byte(here, format):
    """With batches of 4 and parts of 3, neighbouring parts share batches."""
    Path("images/blue/2.jpg").write_bytes(b"no image")
    words = ("--format", format, "--part-size", "3", "--batch-size", "4")
    assert embed(*words) == 0
    before = content("e")
    parts = Path("e/parts")
    (parts / f"part-00001.{format}").unlink()
    data = (parts / f"part-00003.{format}").read_bytes()
    (parts / f"part-00003.{format}").write_bytes(data[:-9] + b"damaged!!")
    with pytest.raises(UserError, match=r"part-00001.* is missing: .*--resume"):
        list(read_embeddings("e"))
    assert embed(*words, "--resume") == 0
    assert content("e") == before


def wait_for_parts(folder: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(Path(folder, "parts").glob("part-*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "0"), (signal.SIGTERM, "1")])
def test_stopping_and_resuming_gives_the_same_files(here, signal_when, capsys, number, workers):
    words = ["--part-size", "50", "--batch-size", "16", "--tokens", "patch"]
    assert embed(*words, data="digits", out="whole") == 0
    signal_when(number, lambda: wait_for_parts("e", 2))
    assert embed(*words, "--workers", workers, data="digits") == 128 + number
    said = capsys.readouterr().out.splitlines()[-1]
    done = index()
    assert 2 <= len(done["parts"]) < 29
    assert not done["complete"]
    assert said.startswith(f"stopped by {number.name}: {50 * len(done['parts'])} of 1438 images")
    with pytest.raises(UserError, match=r"holds .* of 1438 images: finish it with"):
        list(read_embeddings("e"))
    command = said.split("continue with mvmae ")[1].split()
    assert "--resume" in command
    assert main(command) == 0
    lines = (f'"workers": {n}' for n in (workers, "0"))
    theirs, ours = content("e"), content("whole")
    theirs["index.json"] = theirs["index.json"].replace(*map(str.encode, lines))
    theirs["index.json"] = theirs["index.json"].replace(b"--workers 1", b"--workers 0")
    assert theirs == ours
    assert embed(*words, "--workers", workers, "--resume", data="digits") == 0  # nothing to do
    assert content("e")["parts/part-00028.parquet"] == ours["parts/part-00028.parquet"]


def test_resume_refuses_other_settings(here, capsys):
    assert embed() == 0
    Path("e/parts/part-00000.parquet").unlink()
    for words, says in (
        (["--tokens", "patch"], "made with --tokens mean, not patch"),
        (["--dtype", "float16"], "made with --dtype float32, not float16"),
        (["--format", "npz"], "made with --format parquet, not npz"),
        (["--part-size", "3"], "made with --part-size 4096, not 3"),
        (["--batch-size", "3", "--part-size", "9"], "--batch-size 64, not 3; --part-size 4096"),
        (["--image-size", "48"], r"weights \w+, not \w+; image_size \[32, 32\], not \[48, 48\]"),
    ):
        refuse(capsys, "--resume", *words, says=says)
    refuse(capsys, "--resume", encoder="random:vit_nano", says=r"weights \w+, not \w+; .*width 64")
    refuse(capsys, "--resume", data="images/red", says="images .*, not")
    Path("images/blue").rename("images/green")
    refuse(capsys, "--resume", says="images .*; labels .*, not")


def test_resume_notices_changed_labels_of_a_list(here, capsys):
    rows = ["images/red/0.jpg,a", "images/red/1.jpg,b"]
    Path("list.csv").write_text("\n".join(rows))
    assert embed(data="list.csv") == 0
    Path("list.csv").write_text("\n".join([rows[0], rows[1].replace(",b", ",a")]))
    refuse(capsys, "--resume", data="list.csv", says="with labels .*, not")


# folders


def test_embeddings_are_not_overwritten_unasked(here, capsys):
    assert embed() == 0
    refuse(capsys, says="e already holds embeddings: .*--resume.*--query.*--overwrite")
    Path("e/mine.txt").write_text("mine")
    Path("e/parts/mine.txt").write_text("mine")
    assert embed("--format", "npz", "--overwrite") == 0
    assert sorted(file.name for file in Path("e/parts").iterdir()) == [
        "mine.txt",
        "part-00000.npz",
    ]
    assert Path("e/mine.txt").read_text() == "mine"
    assert len(whole()[0]) == 10


def test_an_existing_folder_is_kept(here):
    Path("disk").mkdir()
    Path("e").mkdir()
    Path("e/parts").symlink_to("../disk")
    assert embed() == 2  # a dangling link makes the folder non-empty
    Path("e/parts").unlink()
    assert embed() == 0
    shutil.move("e/parts/part-00000.parquet", "disk")
    Path("e/parts").rmdir()
    Path("e/parts").symlink_to("../disk")
    before = Path("e").stat().st_ino
    assert embed("--overwrite", "--part-size", "5") == 0
    assert Path("e").stat().st_ino == before
    assert sorted(file.name for file in Path("disk").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]


@pytest.mark.parametrize("damage", ["", '{"kind": "mvmae emb', "{}", "[]"])
def test_a_damaged_index_can_be_replaced(here, capsys, damage):
    assert embed() == 0
    before = content("e")
    Path("e/index.json").write_text(damage)
    says = "damaged or was not written by mvmae embed: replace the embeddings with --overwrite"
    for words in ([], ["--resume"], ["--query", "images/red/0.jpg"]):
        refuse(capsys, *words, says=says)
    assert embed("--overwrite") == 0
    assert content("e") == before


def test_an_index_of_another_program_is_not_replaced(here, capsys):
    assert embed() == 0
    Path("e/index.json").write_text('{"kind": "books"}')
    for words in (["--overwrite"], ["--resume"]):
        refuse(capsys, *words, says="was not written by mvmae embed: choose another --out")


HOLD = """
import sys
from pathlib import Path
from mvmae.storage.lock import locked
with locked(Path("e")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["well", "killed"])
def test_two_commands_do_not_write_into_one_folder(here, capsys, ends):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    refuse(capsys, says=rf"another command \(process {other.pid} on .*\) is writing into e: wait")
    if ends == "killed":
        other.kill()
    other.communicate()
    assert Path("e/.lock").exists() == (ends == "killed")
    assert embed("--query", "images/red/0.jpg") == 0
    assert not Path("e/.lock").exists()
    assert len(whole()[0]) == 10


def test_a_search_ignores_the_lock_of_a_dead_process(here):
    assert embed() == 0
    Path("e/.lock").write_text("99999999")
    assert embed("--query", "images/red/0.jpg") == 0


def test_folders_of_other_programs_are_left_alone(here, capsys):
    Path("e").mkdir()
    Path("e/index.json").write_text("{}")
    for words in ([], ["--overwrite"], ["--resume"], ["--query", "images/red/0.jpg"]):
        refuse(capsys, *words, says="index.json is damaged or was not written by mvmae embed")
    refuse(capsys, "--overwrite", out="images", says="images holds other files")
    refuse(capsys, out="images/red/0.jpg", says="is a file: --out must name a folder")
    refuse(capsys, "--resume", out="new", says="new holds no embeddings to resume")
    with pytest.raises(UserError, match="new holds no embeddings"):
        list(read_embeddings("new"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--part-size", "0"], "part_size must be at least 1"),
        (["--k", "0"], "k must be at least 1"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--part-size", "99999999"], "makes files of 25.6 GB: use at most 7812500 images"),
        (["--format", "safetensors", "--part-size", "200000"], "lower --part-size"),
        (["--format", "csv"], "invalid choice 'csv'"),
        (["--image-size", "33"], "not a multiple of the patch size"),
        (["--in-channels", "2"], "have 3 channels, not 2"),
        (["--query", "gone.jpg"], "--query gone.jpg cannot be read as an image: No such file"),
        (["--query", "images"], "--query images cannot be read as an image: Is a directory"),
        (
            ["--query", "list.csv"],
            "--query list.csv cannot be read as an image: not an image of a supported kind",
        ),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(here, capsys, words, says):
    Path("list.csv").write_text("images/red/0.jpg\n")
    refuse(capsys, *words, says=says)


def test_too_little_disk_space_is_noticed_first(here, capsys, monkeypatch):
    usage = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2559))
    refuse(capsys, says="need 0.00 GB, but .* GB free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2560))
    assert embed() == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
    assert embed("--overwrite") == 0  # replaces the old files
    refuse(capsys, "--overwrite", "--tokens", "patch", says="GB free")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_disk_that_fills_up_leaves_complete_parts_to_resume_from(here, capsys):
    words = ("--part-size", "4")
    assert embed(*words) == 0
    before = content("e")
    Path("e/parts/part-00001.parquet").unlink()
    Path("e/parts/.part-00001.parquet.tmp").symlink_to("/dev/full")
    capsys.readouterr()
    assert embed(*words, "--resume") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(file.name for file in Path("e/parts").iterdir()) == [
        "part-00000.parquet",
        "part-00002.parquet",
    ]
    assert embed(*words, "--resume") == 0
    assert content("e") == before


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))


@pytest.mark.slow
def test_a_file_size_limit_leaves_no_partial_part(here):
    command = f"embed {ENCODER} digits --image-size 32 --part-size 500 --out e --workers 0"
    done = subprocess.run(
        [sys.executable, "-m", "mvmae", *command.split()],
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert list(Path("e/parts").iterdir()) == []
    assert main([*command.split(), "--resume"]) == 0


# search


def compare_all(query: int) -> list[tuple[str, float]]:
    paths, _, rows = whole()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows[query]
    order = [at for at in np.argsort(-similarity, kind="stable") if at != query]
    return [(paths[at], float(similarity[at])) for at in order]


@pytest.mark.parametrize("format", FORMATS)
def test_neighbours_match_a_full_comparison(here, capsys, format):
    words = ("--format", format, "--part-size", "3")
    assert embed(*words, "--query", "images/red/1.jpg", "images/blue/0.jpg", "--k", "4") == 0
    kept = json.loads(Path("e/neighbours.json").read_text())
    for answer, query in zip(kept["queries"], (6, 0), strict=True):
        ours = compare_all(query)[:4]
        assert [near["path"] for near in answer["neighbours"]] == [path for path, _ in ours]
        assert [near["rank"] for near in answer["neighbours"]] == [1, 2, 3, 4]
        np.testing.assert_allclose(
            [near["similarity"] for near in answer["neighbours"]],
            [similarity for _, similarity in ours],
            atol=2e-6,
        )
        assert answer["itself"]["path"] == answer["query"]
        assert answer["itself"]["similarity"] == pytest.approx(1, abs=1e-5)
    said = capsys.readouterr().out
    assert "itself" in said
    assert "nearest to images/red/1.jpg" in said
    with Image.open("e/neighbours.png") as picture:
        assert picture.format == "PNG"


def test_existing_embeddings_are_searched_and_not_computed_again(here, capsys):
    assert embed() == 0
    before = content("e")
    shutil.copy("images/red/1.jpg", "copy.jpg")
    assert embed("--query", "copy.jpg", "--k", "20", "--format", "npz", "--batch-size", "2") == 0
    assert content("e").items() >= before.items()
    (answer,) = json.loads(Path("e/neighbours.json").read_text())["queries"]
    assert answer["itself"] is None
    assert len(answer["neighbours"]) == 10
    assert answer["neighbours"][0]["path"] == "images/red/1.jpg"
    assert answer["neighbours"][0]["label"] == "red"
    assert "there are 10 neighbours, not 20" in capsys.readouterr().out


def test_the_query_is_recognised_under_any_of_its_names(here):
    Path("folder").symlink_to("images/red")
    assert embed("--query", str(here / "folder" / "1.jpg")) == 0
    (answer,) = json.loads(Path("e/neighbours.json").read_text())["queries"]
    assert answer["itself"]["path"] == "images/red/1.jpg"
    assert len(answer["neighbours"]) == 8


def test_search_refuses_embeddings_of_other_images_or_encoders(here, capsys):
    assert embed() == 0
    query = ("--query", "images/red/1.jpg")
    refuse(capsys, *query, "--tokens", "cls", says="made with --tokens mean, not cls")
    refuse(capsys, *query, encoder="random:vit_nano", says="weights")
    refuse(capsys, *query, data="images/red", says="images .*, not")
    part = Path("e/parts/part-00000.parquet")
    part.write_bytes(part.read_bytes()[:-1])
    refuse(
        capsys, *query, says="part-00000.parquet is damaged: mvmae embed .* --resume makes it again"
    )
    part.unlink()
    refuse(capsys, *query, says="part-00000.parquet is missing")
    assert embed(*query, "--resume") == 0
    assert Path("e/neighbours.png").exists()


def test_the_picture_is_not_written_among_the_images(here, capsys):
    query = ("--query", "images/red/1.jpg")
    refuse(capsys, *query, out="images/e", says="is among the images.*--out elsewhere")
    refuse(capsys, *query, out="images", says="is among the images")
    assert embed(out="images/e") == 0


def test_a_search_can_be_repeated_from_its_result(here):
    assert embed("--query", "images/red/1.jpg", "--k", "3") == 0
    before = Path("e/neighbours.json").read_bytes()
    assert main(["embed", "--recipe", "e/neighbours.json"]) == 0
    assert Path("e/neighbours.json").read_bytes() == before


def test_patch_tokens_are_searched_by_their_mean(here, capsys):
    query = ("--query", "images/red/1.jpg")
    assert embed(*query) == 0
    assert embed(*query, "--tokens", "patch", out="patch") == 0
    assert "patch tokens are searched by their mean" in capsys.readouterr().out
    mean, patch = (
        json.loads(Path(out, "neighbours.json").read_text())["queries"][0]["neighbours"]
        for out in ("e", "patch")
    )
    assert [near["path"] for near in mean] == [near["path"] for near in patch]


def test_built_in_images_can_be_searched(here):
    assert embed("--query", "images/red/1.jpg", data="digits") == 0
    (answer,) = json.loads(Path("e/neighbours.json").read_text())["queries"]
    assert answer["neighbours"][0]["path"].startswith("digits")
