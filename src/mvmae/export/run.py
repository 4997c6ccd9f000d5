"""Encoders for other software. Read `run` from top to bottom.

Each format gets a folder of its name in OUT (by default export/ in the run folder):

    timm/         model.safetensors, which timm.create_model loads
    hf/           config.json, model.safetensors, preprocessor_config.json: transformers' ViTModel
    hf-mae/       the same for transformers' ViTMAEForPreTraining, decoder included
    onnx/         encoder.onnx, beyond 2 GiB with encoder.onnx.data beside it
    pt2/          encoder.pt2, torch.export's program
    safetensors/  encoder.safetensors and encoder.json, as mvmae keeps them

and in each a README.md that says what it is and how to load it. All formats are written into a
temporary folder in OUT, loaded back and compared with the source on real images; only when all of
them agree are they renamed to where they belong.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.export import ExportConfig, ExportFormat
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder
from mvmae.encoders.description import describe_encoder
from mvmae.errors import UserError
from mvmae.export import to_graph, to_timm, to_transformers
from mvmae.export.card import card
from mvmae.method.views import normalized, whole_view
from mvmae.storage import results, run_folder

NUM_IMAGES = 8
TOLERANCE = 1e-4  # of the largest number; fp32 in another order of operations differs by 1e-6
NEEDS = {  # packages of a format, and the extra that brings them
    "timm": (("timm",), "timm"),
    "hf": (("transformers",), "hf"),
    "hf-mae": (("transformers",), "hf"),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "pt2": ((), ""),
    "safetensors": ((), ""),
}
MAIN = {  # the file of a format
    "timm": to_timm.FILE,
    "hf": to_transformers.FILE,
    "hf-mae": to_transformers.FILE,
    "onnx": to_graph.ONNX,
    "pt2": to_graph.PT2,
    "safetensors": encoders.ENCODER_FILE,
}
CPU = torch.device("cpu")


class Row(NamedTuple):
    """What is said of a format at the end."""

    format: ExportFormat
    file: str
    """In OUT."""

    megabytes: float
    difference: float
    """Largest absolute difference to the source."""

    largest: float
    """Largest absolute number that was compared."""


def run(config: ExportConfig) -> None:
    """Write an encoder in the formats asked for, check them, and say how to load them.

    Raises:
        UserError: A package is missing, something is there already, there is no such encoder, or a
            format cannot hold it.
        RuntimeError: What was written computes something else than the source.
    """
    require_packages(config.format)
    require_run(config)
    folder = config.out or results.home(config.encoder, None) / "export"
    refuse_existing(folder, config)
    opened, whole = open_all(config)
    images = example_images(config, opened)

    console = terminal.people()
    facts = describe_encoder(config.encoder, opened)
    rows = []
    with workplace(folder) as temporary:
        for name in config.format:
            with console.status(f"{name} ..."):
                fresh = temporary / name
                fresh.mkdir()
                write(name, fresh, opened, whole)
                text = card(facts, name, loading(name, Path(), opened))
                (fresh / "README.md").write_text(text, encoding="utf-8")
                difference, largest = compare(name, fresh, opened, whole, images)
            megabytes = sum(file.stat().st_size for file in fresh.iterdir()) / 1e6
            rows.append(Row(name, f"{name}/{MAIN[name]}", megabytes, difference, largest))
        for name in config.format:
            put(temporary / name, folder / name, aside=temporary / f"{name}-before")

    written = [row._asdict() for row in rows]
    terminal.emit("result", {"command": "export", "folder": str(folder), "formats": written})
    console.print(f"written: {folder}")
    Console().print(table_of(rows))
    console.print(
        f"largest difference to the source on {len(images)} images of "
        f"{config.data if opened.encoder.in_channels in (1, 3) else 'noise'}; "
        f"{TOLERANCE:g} of the largest number would be too much"
    )
    if len(config.format) == 1:
        console.print(f"\n{loading(config.format[0], folder / config.format[0], opened)}")
        return
    console.print("\nhow to load each:")
    for name in config.format:
        console.print(f"  {folder / name / 'README.md'}")


def require_packages(formats: tuple[ExportFormat, ...]) -> None:
    """Make sure that every package is here before anything is done.

    Raises:
        UserError: One is missing.
    """
    for name in formats:
        packages, extra = NEEDS[name]
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            raise UserError(
                f"--format {name} needs {' and '.join(missing)}: pip install 'mvmae[{extra}]'"
            )


def require_run(config: ExportConfig) -> None:
    """Refuse an encoder without a decoder where the decoder is to be written.

    Raises:
        UserError: It is one of a library, or untrained.
    """
    kind = config.encoder.partition(":")[0]
    if "hf-mae" in config.format and kind in ("random", "timm", "hf"):
        raise UserError(
            f"--format hf-mae needs a run of pretrain, whose decoder it writes: {config.encoder} "
            "has none"
        )


def refuse_existing(folder: Path, config: ExportConfig) -> None:
    """Leave what is there alone.

    Raises:
        UserError: There is something of these formats, or a file in the way.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: --out must name a folder")
    there = [str(folder / name) for name in config.format if (folder / name).exists()]
    if there and not config.overwrite:
        raise UserError(
            f"there already: {', '.join(there)}: --overwrite replaces it, --out goes elsewhere"
        )


def open_all(config: ExportConfig) -> tuple[OpenedEncoder, OpenedAutoencoder | None]:
    """The encoder, and the whole autoencoder where a format wants it.

    Raises:
        UserError: There is none, or a format cannot hold it.
    """
    whole = encoders.open_autoencoder(config.encoder) if "hf-mae" in config.format else None
    opened = (
        encoders.open_encoder(config.encoder)
        if whole is None or len(config.format) > 1
        else encoders.attach_preprocessing(whole.model.encoder, whole.config)
    )
    if whole is not None:
        to_transformers.require_decoder(whole, config.encoder)
    if "hf" in config.format:
        to_transformers.require_plain(opened.encoder, config.encoder)
    return opened, whole


def example_images(config: ExportConfig, opened: OpenedEncoder) -> Tensor:
    """Images as the encoder takes them, spread over the data; those it cannot read passed over.

    Image files have 1 or 3 channels; an encoder of other ones is compared on noise.

    Raises:
        UserError: There is none that can be read.
    """
    encoder, preprocessing = opened.encoder, opened.preprocessing
    if encoder.in_channels not in (1, 3) and opened.depth == "8":
        shape = (NUM_IMAGES, encoder.in_channels, *encoder.image_size)
        pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
        return normalized(pixels.byte(), preprocessing.mean, preprocessing.std, CPU)
    source = open_source((config.data,), encoder.in_channels, opened.depth)
    spread = range(0, len(source), max(1, len(source) // NUM_IMAGES))
    images = []
    for index in dict.fromkeys([*spread, *range(len(source))]):
        try:
            image = source.read(index)
        except UnreadableImageError:
            continue
        images.append(whole_view(image, encoder.image_size, preprocessing.interpolation))
        if len(images) == NUM_IMAGES:
            break
    if not images:
        raise UserError(f"none of the {len(source)} images of {source.name} can be read")
    return normalized(torch.stack(images), preprocessing.mean, preprocessing.std, CPU)


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`; of what was made here, only what was renamed stays."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    run_folder.make(folder)
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in made:
            if any(path.iterdir()):
                break
            path.rmdir()


def put(fresh: Path, target: Path, *, aside: Path) -> None:
    """Rename a finished folder to where it belongs; the one that is there goes aside."""
    if target.is_dir() and not target.is_symlink():
        target.rename(aside)
    elif target.exists() or target.is_symlink():
        target.unlink()
    fresh.rename(target)


def write(
    name: ExportFormat, folder: Path, opened: OpenedEncoder, whole: OpenedAutoencoder | None
) -> None:
    """Write one format into an empty folder; hf-mae needs the whole autoencoder."""
    match name:
        case "timm":
            to_timm.write(folder, opened)
        case "hf":
            to_transformers.write(folder, opened)
        case "hf-mae":
            assert whole is not None
            to_transformers.write_mae(folder, whole)
        case "onnx":
            to_graph.write_onnx(folder, opened)
        case "pt2":
            to_graph.write_pt2(folder, opened)
        case "safetensors":
            encoders.save_encoder(folder, opened)


def loading(name: ExportFormat, folder: Path, opened: OpenedEncoder) -> str:
    """Lines of Python that load one format."""
    match name:
        case "timm":
            return to_timm.lines(folder / to_timm.FILE, opened)
        case "hf":
            return to_transformers.lines(folder)
        case "hf-mae":
            return to_transformers.lines_mae(folder)
        case "onnx":
            return to_graph.lines_onnx(folder)
        case "pt2":
            return to_graph.lines_pt2(folder)
        case "safetensors":
            file = folder / encoders.ENCODER_FILE
            text = f"import mvmae\nencoder = mvmae.load_encoder({str(file)!r})"
            if not find_spec("timm") or not to_timm.is_same(opened.encoder):
                return text
            return f"{text}\n\n# or\n{to_timm.lines(file, opened)}"


@torch.inference_mode()
def compare(
    name: ExportFormat,
    folder: Path,
    opened: OpenedEncoder,
    whole: OpenedAutoencoder | None,
    images: Tensor,
) -> tuple[float, float]:
    """Load one format back and compare what it computes, for many images and for one.

    Returns:
        The largest absolute difference, and the largest absolute number.

    Raises:
        RuntimeError: It computes something else.
        UserError: The encoder itself computes nothing finite.
    """
    computed = loaded(name, folder, opened)
    pairs = []
    for batch in (images, images[:1]):
        ours = (
            to_transformers.expected_mae(whole, batch)
            if whole is not None and name == "hf-mae"
            else features(opened, batch)
        )
        pairs += zip(ours, computed(batch), strict=True)
    largest = max(our.abs().max().item() for our, _ in pairs)
    if not all(our.isfinite().all() for our, _ in pairs):
        raise UserError("this encoder's features are not finite: there is nothing to export")
    worst = 0.0
    for our, their in pairs:
        difference = (our - their).abs().max().item()
        if our.shape != their.shape or not difference <= TOLERANCE * our.abs().max().item():
            raise RuntimeError(
                f"{name}: what was written computes something else than the source: they differ "
                f"by {difference:.3g}, the largest number is {our.abs().max().item():.3g}"
            )
        worst = max(worst, difference)
    return worst, largest


def loaded(
    name: ExportFormat, folder: Path, opened: OpenedEncoder
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What computes from the files, by the other software."""
    match name:
        case "timm":
            return to_timm.load(folder, opened)
        case "hf":
            return to_transformers.load(folder, opened)
        case "hf-mae":
            return to_transformers.load_mae(folder)
        case "onnx":
            return to_graph.load_onnx(folder)
        case "pt2":
            return to_graph.load_pt2(folder)
        case "safetensors":
            return partial(features, encoders.open_encoder(folder))


def features(opened: OpenedEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features, B x D, and those of the patches, B x N x D."""
    tokens = opened.encoder(images)
    return opened.encoder.pooled(tokens, opened.pool), tokens[:, opened.encoder.num_prefix :]


def table_of(rows: list[Row]) -> Table:
    """The formats as a table for the terminal."""
    table = Table()
    for column in ("format", "file"):
        table.add_column(column, no_wrap=True)
    for column in ("MB", "largest difference", "largest number"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.format,
            row.file,
            f"{row.megabytes:.1f}",
            f"{row.difference:.1e}",
            f"{row.largest:.3g}",
        )
    return table
