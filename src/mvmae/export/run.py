"""Export an encoder to other software. Read `run` from top to bottom.

Each format gets its own folder in OUT (by default export/ in the run folder):

    timm/         model.safetensors, which timm.create_model loads
    hf/           config.json, model.safetensors, preprocessor_config.json: transformers' ViTModel
    hf-mae/       the same for transformers' ViTMAEForPreTraining, decoder included
    onnx/         encoder.onnx; beyond 2 GiB with encoder.onnx.data beside it
    pt2/          encoder.pt2, a program of torch.export
    safetensors/  encoder.safetensors and encoder.json, as mvmae stores them

and in it a README.md that describes the encoder and how to load it. All formats are first written
to a temporary folder in OUT, loaded back and compared with the source on real images. They are
renamed to their final place only when all of them agree.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

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
from mvmae.export.card import write_card
from mvmae.method.views import normalized, whole_view
from mvmae.storage import results, run_folder

NUM_IMAGES = 8
TOLERANCE = 1e-4  # of the largest number; reordering fp32 operations changes about 1e-6
CPU = torch.device("cpu")

Outputs = tuple[Tensor, ...]


class Format(NamedTuple):
    """How a format is written and loaded, from an OpenedEncoder; hf-mae: an OpenedAutoencoder."""

    file: str
    """Name of the file with the weights."""

    write: Callable[[Path, Any], object]
    """Write the encoder into an empty folder."""

    load: Callable[[Path, Any], Callable[[Tensor], Outputs]]
    """Load it with the other software, as a function of normalised images."""

    snippet: Callable[[Path, Any], str]
    """Python code that loads it."""

    packages: tuple[str, ...] = ()
    extra: str = ""
    """Extra of mvmae that installs the packages."""


def encoder_outputs(opened: OpenedEncoder, images: Tensor) -> Outputs:
    """Pooled features, B x D, and patch features, B x N x D."""
    tokens = opened.encoder(images)
    return opened.encoder.pool(tokens, opened.pool), tokens[:, opened.encoder.num_prefix :]


def _load_safetensors(folder: Path, _opened: OpenedEncoder) -> Callable[[Tensor], Outputs]:
    return partial(encoder_outputs, encoders.open_encoder(folder))


def _safetensors_snippet(folder: Path, opened: OpenedEncoder) -> str:
    file = folder / encoders.ENCODER_FILE
    text = f"import mvmae\nencoder = mvmae.load_encoder({str(file)!r})"
    if not find_spec("timm") or not to_timm.has_timm_weights(opened.encoder):
        return text
    return f"{text}\n\n# or\n{to_timm.snippet(folder, opened, encoders.ENCODER_FILE)}"


FORMATS = {
    "timm": Format(to_timm.FILE, to_timm.write, to_timm.load, to_timm.snippet, ("timm",), "timm"),
    "hf": Format(
        to_transformers.FILE,
        to_transformers.write,
        to_transformers.load,
        to_transformers.snippet,
        ("transformers",),
        "hf",
    ),
    "hf-mae": Format(
        to_transformers.FILE,
        to_transformers.write_mae,
        to_transformers.load_mae,
        to_transformers.mae_snippet,
        ("transformers",),
        "hf",
    ),
    "onnx": Format(
        to_graph.ONNX,
        to_graph.write_onnx,
        to_graph.load_onnx,
        to_graph.onnx_snippet,
        ("onnx", "onnxscript", "onnxruntime"),
        "onnx",
    ),
    "pt2": Format(to_graph.PT2, to_graph.write_pt2, to_graph.load_pt2, to_graph.pt2_snippet),
    "safetensors": Format(
        encoders.ENCODER_FILE, encoders.save_encoder, _load_safetensors, _safetensors_snippet
    ),
}


class Models(NamedTuple):
    """What is exported."""

    opened: OpenedEncoder
    autoencoder: OpenedAutoencoder | None
    """Opened only for hf-mae, which writes the decoder as well."""

    def source(self, name: ExportFormat) -> OpenedEncoder | OpenedAutoencoder | None:
        """What a format is made from."""
        return self.autoencoder if name == "hf-mae" else self.opened

    def outputs(self, name: ExportFormat, images: Tensor) -> Outputs:
        """What a format must compute."""
        if name == "hf-mae" and self.autoencoder is not None:
            return to_transformers.mae_outputs(self.autoencoder, images)
        return encoder_outputs(self.opened, images)


class Row(NamedTuple):
    """A line of the final table."""

    format: ExportFormat
    file: str
    """Path in OUT."""

    megabytes: float
    difference: float
    """Largest absolute difference from the source."""

    largest: float
    """Largest absolute number that was compared."""


def run(config: ExportConfig) -> None:
    """Write an encoder in the requested formats, check them, and print how to load them.

    Raises:
        UserError: A package is missing, an output exists already, the encoder cannot be opened, or
            a format cannot hold it.
        RuntimeError: A written file computes something else than the source.
    """
    require_packages(config.format)
    folder = output_folder(config)
    models = open_models(config)
    images = load_images(config, models.opened)

    console = terminal.people()
    description = describe_encoder(config.encoder, models.opened)
    rows = []
    with temporary_folder(folder) as temporary:
        for name in config.format:
            with console.status(f"{name} ..."):
                written = temporary / name
                written.mkdir()
                FORMATS[name].write(written, models.source(name))
                card = write_card(description, name, snippet(name, Path(), models))
                (written / "README.md").write_text(card, encoding="utf-8")
                difference, largest = compare(name, written, models, images)
            megabytes = sum(file.stat().st_size for file in written.iterdir()) / 1e6
            rows.append(Row(name, f"{name}/{FORMATS[name].file}", megabytes, difference, largest))
        for name in config.format:
            replace_folder(temporary / name, folder / name, aside=temporary / f"{name}-before")

    formats = [row._asdict() for row in rows]
    terminal.emit("result", {"command": "export", "folder": str(folder), "formats": formats})
    console.print(f"written: {folder}")
    Console().print(make_table(rows))
    console.print(
        f"largest difference from the source on {len(images)} images of "
        f"{config.data if models.opened.encoder.in_channels in (1, 3) else 'noise'}; "
        f"the limit is {TOLERANCE:g} of the largest number"
    )
    if len(config.format) == 1:
        (name,) = config.format
        console.print(f"\n{snippet(name, folder / name, models)}")
        return
    console.print("\nhow to load each format:")
    for name in config.format:
        console.print(f"  {folder / name / 'README.md'}")


def require_packages(formats: tuple[ExportFormat, ...]) -> None:
    """Check that all packages are installed before any work is done.

    Raises:
        UserError: One is missing.
    """
    for name in formats:
        missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
        if missing:
            raise UserError(
                f"--format {name} needs {' and '.join(missing)}: "
                f"pip install 'mvmae[{FORMATS[name].extra}]'"
            )


def output_folder(config: ExportConfig) -> Path:
    """Folder that gets one folder per format.

    Raises:
        UserError: It is a file or inside one, or a format exists in it already.
    """
    folder = config.out or results.home(config.encoder, None) / "export"
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: --out must name a folder")
    existing = [str(folder / name) for name in config.format if (folder / name).exists()]
    if existing and not config.overwrite:
        raise UserError(
            f"{', '.join(existing)} already exists: replace it with --overwrite, or choose another "
            "--out"
        )
    return folder


def open_models(config: ExportConfig) -> Models:
    """Open the encoder, and the autoencoder if a format needs it.

    Raises:
        UserError: It cannot be opened, or a format cannot hold it.
    """
    name, autoencoder = config.encoder, None
    if "hf-mae" in config.format:
        if name.partition(":")[0] in ("random", "timm", "hf"):
            raise UserError(
                f"--format hf-mae writes the decoder of a pretrain run, and {name} has none: name "
                "a run folder, or choose --format hf"
            )
        autoencoder = encoders.open_autoencoder(name)
    if autoencoder is None or len(config.format) > 1:
        opened = encoders.open_encoder(name)
    else:
        opened = encoders.attach_preprocessing(autoencoder.model.encoder, autoencoder.config)
    if autoencoder is not None:
        to_transformers.require_decoder(autoencoder, name)
    if "hf" in config.format:
        to_transformers.require_plain(opened.encoder, name)
    return Models(opened, autoencoder)


def load_images(config: ExportConfig, opened: OpenedEncoder) -> Tensor:
    """Load images spread over the data, normalised; unreadable ones are skipped.

    Image files have 1 or 3 channels: an encoder with another number is compared on noise.

    Raises:
        UserError: None of the images can be read.
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
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`; new folders that stay empty are removed afterwards."""
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


def replace_folder(source: Path, target: Path, *, aside: Path) -> None:
    """Rename a finished folder to its final place, and what is there out of the way."""
    if target.is_dir() and not target.is_symlink():
        target.rename(aside)
    elif target.exists() or target.is_symlink():
        target.unlink()
    source.rename(target)


def snippet(name: ExportFormat, folder: Path, models: Models) -> str:
    """Python code that loads a format."""
    return FORMATS[name].snippet(folder, models.source(name))


@torch.inference_mode()
def compare(
    name: ExportFormat, folder: Path, models: Models, images: Tensor
) -> tuple[float, float]:
    """Load a format back and compare what it computes, for all images and for a single one.

    Returns:
        The largest absolute difference, and the largest absolute number.

    Raises:
        RuntimeError: It computes something else.
        UserError: The outputs of the encoder itself are not finite.
    """
    computed = FORMATS[name].load(folder, models.source(name))
    pairs = []
    for batch in (images, images[:1]):
        pairs += zip(models.outputs(name, batch), computed(batch), strict=True)
    largest = max(expected.abs().max().item() for expected, _ in pairs)
    if not all(expected.isfinite().all() for expected, _ in pairs):
        raise UserError("the features of this encoder are not finite: there is nothing to export")
    worst = 0.0
    for expected, actual in pairs:
        difference = (expected - actual).abs().max().item()
        limit = TOLERANCE * expected.abs().max().item()
        if expected.shape != actual.shape or not difference <= limit:
            raise RuntimeError(
                f"{name}: the written file computes something else than the source: they differ by "
                f"{difference:.3g}, and the largest number is {expected.abs().max().item():.3g}"
            )
        worst = max(worst, difference)
    return worst, largest


def make_table(rows: list[Row]) -> Table:
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
