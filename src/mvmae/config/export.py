"""Encoders for other software, and what an encoder is: what `export` and `show` are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from mvmae.config.checks import require
from mvmae.config.evaluation import EncoderArgument

ExportFormat = Literal["timm", "hf", "hf-mae", "onnx", "pt2", "safetensors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Write an encoder for other software, and check that it computes the same there.

    Every format gets a folder of its name in OUT, with a README.md that says how to load it.
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""

    format: Annotated[tuple[ExportFormat, ...], arg(metavar="FORMAT [FORMAT ...]")]
    """timm: weights that timm.create_model loads.
    hf: transformers' ViTModel.
    hf-mae: transformers' ViTMAEForPreTraining, decoder included; ENCODER must be a run.
    onnx: for ONNX Runtime and others, any number of images.
    pt2: torch.export's program, any number of images.
    safetensors: weights and sizes as mvmae keeps them."""

    data: str = "photos"
    """Images to check with: a folder, a list file, photos or digits."""

    out: Path | None = None
    """Folder that gets a folder for each format. Default: export/ in the run folder, where ENCODER
    is one or lies in one; else in runs/ENCODER."""

    overwrite: bool = False
    """Replace what is there of these formats."""

    def __post_init__(self) -> None:
        require(len(self.format) > 0, "name a --format: timm, hf, hf-mae, onnx, pt2 or safetensors")
        twice = sorted({name for name in self.format if self.format.count(name) > 1})
        require(not twice, f"format {' '.join(twice)} is named twice")
        require(self.data != "", "DATA is empty: name a folder, a list file, photos or digits")
        require(
            self.out is None or self.out.suffix not in (".onnx", ".pt2", ".safetensors"),
            f"--out {self.out} must name a folder, which gets a folder for each format",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowConfig:
    """Say what an encoder is, where it comes from, and how it has been judged."""

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME."""
