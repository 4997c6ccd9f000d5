"""Options of `mvmae export` and `show`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from mvmae.config import checks
from mvmae.config.checks import Rule
from mvmae.config.options import NO_IMAGES, EncoderOption

ExportFormat = Literal["timm", "hf", "hf-mae", "onnx", "pt2", "safetensors"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(EncoderOption):
    """Write an encoder for other software, and check that it computes the same there.

    Every format gets its own folder in OUT, with a README.md that says how to load it.
    """

    format: Annotated[
        tuple[ExportFormat, ...],
        arg(metavar="FORMAT [FORMAT ...]"),
        checks.one_or_more("name a --format: timm, hf, hf-mae, onnx, pt2 or safetensors"),
        checks.DISTINCT,
    ]
    """timm: weights that timm.create_model loads.
    hf: transformers' ViTModel.
    hf-mae: transformers' ViTMAEForPreTraining, decoder included; ENCODER must be a run.
    onnx: for ONNX Runtime and others, any number of images.
    pt2: torch.export's program, any number of images.
    safetensors: weights and sizes in mvmae's own format."""

    data: Annotated[str, checks.not_empty(NO_IMAGES)] = "photos"
    """Images to check with: a folder, a list file, photos or digits."""

    out: Annotated[
        Path | None,
        Rule(
            "--out {value} must name a folder, which gets a folder for each format",
            lambda out: out.suffix not in (".onnx", ".pt2", ".safetensors"),
        ),
    ] = None
    """Folder that gets a folder for each format. Default: export/ in the run folder that ENCODER is
    or is in; else in runs/ENCODER."""

    overwrite: bool = False
    """Replace existing exports in these formats."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig(EncoderOption):
    """Describe an encoder: its size, its origin, and how it was judged."""
