"""Options of `python -m benchmarks`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvmae.config.checks import require
from mvmae.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """Time the parts of pre-training against other packages, in one run."""

    part: Annotated[Positional[Literal["step", "input", "scale"]], arg(metavar="PART")]
    """step: a training step, part by part, against other packages.
    input: two views of a JPEG file, against torchvision's PIL transform, file decoded twice.
    scale: growth of rate and memory with batch, image size, model and reader processes."""

    model: ModelConfig = field(default_factory=ModelConfig)

    data: str | None = None
    """Folder of JPEG images for input and scale. Default: the built-in photographs, as JPEG."""

    batch_size: int = 16
    """Images in a step, each seen in two views."""

    rounds: int | None = None
    """Timed rounds of each side, in turn; medians are reported. Default: 7, or 3 if quick (input:
    always 7)."""

    images: int | None = None
    """Images read in a round of input, and for each number of processes of scale. Default: 200, or
    50 if quick."""

    quick: bool = False
    """Under a minute on two cores: ViT-S at 96 pixels for step, few images for input, ViT-Ti at 64
    pixels for scale."""

    peers: tuple[Literal["transformers", "lightly", "timm"], ...] = (
        "transformers",
        "lightly",
        "timm",
    )
    """Packages that step compares with; one that is not installed is left out."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention of the peers: sdpa, their default, or eager, plain products."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Whether our step is timed again, compiled as by `mvmae pretrain`; auto: on CUDA."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto: CUDA if available."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic; auto: bf16 on CUDA, fp32 on a CPU."""

    out: Path | None = None
    """JSON file for the result; scale draws a picture beside it."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_rounds", "num_images"):
            value = getattr(self, name)
            require(value >= 1, f"{name.removeprefix('num_')} must be at least 1, not {value}")
        require(
            not self.quick or self.part == "input" or self.model == ModelConfig(),
            "--quick brings its own model: leave out --quick or --model.*",
        )
        require(
            len(set(self.peers)) == len(self.peers),
            f"peers lists a value twice: {' '.join(self.peers)}",
        )
        require(
            self.model.decoded_share == 1 or not self.peers or self.part != "step",
            "peers rebuild every hidden patch: leave model.decoded_share at 1, or have no --peers",
        )

    @property
    def step_model(self) -> ModelConfig:
        """Model that `step` trains."""
        return ModelConfig(encoder="vit_small", image_size=96) if self.quick else self.model

    @property
    def num_rounds(self) -> int:
        """Number of timed rounds."""
        if self.rounds is not None:
            return self.rounds
        return 3 if self.quick and self.part != "input" else 7

    @property
    def num_images(self) -> int:
        """Number of images in a round of `input`."""
        return self.images if self.images is not None else 50 if self.quick else 200
