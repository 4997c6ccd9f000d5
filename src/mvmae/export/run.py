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

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from mvmae import encoders, terminal
from mvmae.config.export import ExportConfig, ExportFormat
from mvmae.data.reading.decode import UnreadableImageError
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedAutoencoder, OpenedEncoder
from mvmae.encoders.description import describe_encoder
from mvmae.errors import UserError
from mvmae.export import to_graph, to_hf, to_timm
from mvmae.export.card import write_card
from mvmae.method.views import normalize, whole_view
from mvmae.storage import results
from mvmae.storage.lock import locked

NUM_IMAGES = 8
TOLERANCE = 1e-4  # of the largest number; reordering fp32 operations changes about 1e-6
CPU = torch.device("cpu")

Outputs = tuple[Tensor, ...]


def encoder_outputs(opened: OpenedEncoder, images: Tensor) -> Outputs:
    """Pooled features, B x D, and patch features, B x N x D."""
    tokens = opened.encoder(images)
    return opened.encoder.pool(tokens, opened.pool), tokens[:, opened.encoder.num_prefix :]


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
    """That the extra of mvmae with the format's name installs."""

    outputs: Callable[[Any, Tensor], Outputs] = encoder_outputs
    """What the loaded model must compute."""


def _load_safetensors(folder: Path, _opened: OpenedEncoder) -> Callable[[Tensor], Outputs]:
    return partial(encoder_outputs, encoders.open_encoder(folder))


def _safetensors_snippet(folder: Path, opened: OpenedEncoder) -> str:
    file = folder / encoders.ENCODER_FILE
    text = f"import mvmae\nencoder = mvmae.load_encoder({str(file)!r})"
    if not find_spec("timm") or not to_timm.has_timm_weights(opened.encoder):
        return text
    return f"{text}\n\n# or\n{to_timm.snippet(folder, opened, encoders.ENCODER_FILE)}"


FORMATS = {
    "timm": Format(to_timm.FILE, to_timm.write, to_timm.load, to_timm.snippet, ("timm",)),
    "hf": Format(to_hf.FILE, to_hf.write, to_hf.load, to_hf.snippet, ("transformers",)),
    "hf-mae": Format(
        *(to_hf.FILE, to_hf.write_mae, to_hf.load_mae, to_hf.mae_snippet, ("transformers",)),
        outputs=to_hf.mae_outputs,
    ),
    "onnx": Format(
        *(to_graph.ONNX, to_graph.write_onnx, to_graph.load_onnx, to_graph.onnx_snippet),
        packages=("onnx", "onnxscript", "onnxruntime"),
    ),
    "pt2": Format(to_graph.PT2, to_graph.write_pt2, to_graph.load_pt2, to_graph.pt2_snippet),
    "safetensors": Format(
        encoders.ENCODER_FILE, encoders.save_encoder, _load_safetensors, _safetensors_snippet
    ),
}


def run(config: ExportConfig) -> None:
    """Write an encoder in the requested formats, check them, and print how to load them.

    Raises:
        UserError: A package is missing, an output exists already, the encoder cannot be opened, or
            a format cannot hold it.
        RuntimeError: A written file computes something else than the source.
    """
    require_packages(config.format)
    folder = output_folder(config)
    opened, autoencoder = open_models(config)
    images = load_images(config, opened)

    console = terminal.console()
    description = describe_encoder(config.encoder, opened)
    sources = {name: autoencoder if name == "hf-mae" else opened for name in config.format}
    rows: list[dict[str, Any]] = []
    with (
        locked(folder),
        tempfile.TemporaryDirectory(
            prefix=".unfinished-", dir=folder, ignore_cleanup_errors=True
        ) as temporary,
    ):
        for name, source in sources.items():
            with console.status(f"{name} ..."):
                written = Path(temporary, name)
                written.mkdir()
                FORMATS[name].write(written, source)
                card = write_card(description, name, FORMATS[name].snippet(Path(), source))
                # The card comes with the weights, so that a copied folder explains itself.
                (written / "README.md").write_text(card, encoding="utf-8")
                difference, largest = compare(name, written, source, images)
            rows.append(
                {
                    "format": name,
                    "file": f"{name}/{FORMATS[name].file}",
                    "megabytes": sum(file.stat().st_size for file in written.iterdir()) / 1e6,
                    "difference": difference,
                    "largest": largest,
                }
            )
        # Only now, when every format has been compared: an export is replaced by a good one only.
        for name in sources:
            aside = Path(temporary, f"{name}-before")
            replace_folder(Path(temporary, name), folder / name, aside=aside)

    terminal.emit("result", {"command": "export", "folder": str(folder), "formats": rows})
    console.print(f"written: {folder}")
    terminal.print_table(make_table(rows))
    console.print(
        f"largest difference from the source on {len(images)} images of "
        f"{config.data if opened.encoder.in_channels in (1, 3) else 'noise'}; "
        f"the limit is {TOLERANCE:g} of the largest number"
    )
    if len(sources) == 1:
        ((name, source),) = sources.items()
        console.print(f"\n{FORMATS[name].snippet(folder / name, source)}")
        return
    console.print("\nhow to load each format:")
    for name in sources:
        console.print(f"  {folder / name / 'README.md'}")


def require_packages(formats: tuple[ExportFormat, ...]) -> None:
    """Check that all packages are installed before any work is done.

    Raises:
        UserError: One is missing.
    """
    for name in formats:
        # Found and not imported: transformers takes seconds to import.
        missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
        if missing:
            raise UserError(
                f"--format {name} needs {' and '.join(missing)}: "
                f"pip install 'mvmae[{name.partition('-')[0]}]'"
            )


def output_folder(config: ExportConfig) -> Path:
    """Folder that gets one folder per format.

    Raises:
        UserError: It is a file or inside one, or a format exists in it already.
    """
    folder = config.out or results.home(config.encoder, None) / "export"
    # All parents, because a folder inside a file cannot be made, which would show much later.
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


def open_models(config: ExportConfig) -> tuple[OpenedEncoder, OpenedAutoencoder | None]:
    """Open the encoder, and the autoencoder for hf-mae, which writes the decoder as well.

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
    # For hf-mae alone the encoder need not be read again.
    if autoencoder is None or len(config.format) > 1:
        opened = encoders.open_encoder(name)
    else:
        opened = encoders.attach_preprocessing(autoencoder.model.encoder, autoencoder.config)
    if autoencoder is not None:
        to_hf.require_decoder(autoencoder, name)
    if "hf" in config.format:
        to_hf.require_plain(opened.encoder, name)
    return opened, autoencoder


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
        return normalize(pixels.byte(), preprocessing.mean, preprocessing.std, CPU)
    source = open_source((config.data,), encoder.in_channels, opened.depth)
    spread = range(0, len(source), max(1, len(source) // NUM_IMAGES))
    images = []
    # After the spread ones all others, in case some of them cannot be read.
    for index in dict.fromkeys([*spread, *range(len(source))]):
        with suppress(UnreadableImageError):
            image = source.read(index)
            images.append(whole_view(image, encoder.image_size, preprocessing.interpolation))
        if len(images) == NUM_IMAGES:
            break
    if not images:
        raise UserError(f"none of the {len(source)} images of {source.name} can be read")
    return normalize(torch.stack(images), preprocessing.mean, preprocessing.std, CPU)


def replace_folder(source: Path, target: Path, *, aside: Path) -> None:
    """Rename a finished folder to its final place, and what is there out of the way."""
    # Renamed and not removed, so that a kill in between loses neither of the two.
    if target.is_dir() and not target.is_symlink():
        target.rename(aside)
    elif target.exists() or target.is_symlink():
        target.unlink()
    source.rename(target)


@torch.inference_mode()
def compare(name: ExportFormat, folder: Path, source: Any, images: Tensor) -> tuple[float, float]:
    """Load a format back and compare what it computes, for all images and for a single one.

    Returns:
        The largest absolute difference, and the largest absolute number.

    Raises:
        RuntimeError: It computes something else.
        UserError: The outputs of the encoder itself are not finite.
    """
    # A batch and a single image, as a graph may be tied to the batch size that it was traced with.
    computed = FORMATS[name].load(folder, source)
    pairs = []
    for batch in (images, images[:1]):
        pairs += zip(FORMATS[name].outputs(source, batch), computed(batch), strict=True)
    if not all(expected.isfinite().all() for expected, _ in pairs):
        raise UserError("the features of this encoder are not finite: there is nothing to export")
    worst = largest = 0.0
    for expected, actual in pairs:
        size, difference = expected.abs().max().item(), (expected - actual).abs().max().item()
        if expected.shape != actual.shape or not difference <= TOLERANCE * size:
            raise RuntimeError(
                f"{name}: the written file computes something else than the source: they differ by "
                f"{difference:.3g}, and the largest number is {size:.3g}"
            )
        worst, largest = max(worst, difference), max(largest, size)
    return worst, largest


def make_table(rows: list[dict[str, Any]]) -> Table:
    """The formats as a table for the terminal."""
    table = Table()
    for column in ("format", "file"):
        table.add_column(column, no_wrap=True)
    for column in ("MB", "largest difference", "largest number"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = f"{row['megabytes']:.1f}", f"{row['difference']:.1e}", f"{row['largest']:.3g}"
        table.add_row(row["format"], row["file"], *figures)
    return table
