"""A page to look at an encoder with: what `explore` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mvmae.config.checks import require
from mvmae.config.evaluation import EncoderArgument
from mvmae.config.pretrain import DataArgument

LAST_PORT = 65535


@dataclass(frozen=True, kw_only=True, slots=True)
class ExploreConfig:
    """Explore an encoder in the browser: masks, attention, patches alike, nearest images.

    Nothing leaves the machine: the page is served to it alone, and loads nothing from elsewhere.
    """

    encoder: EncoderArgument
    """Run folder, checkpoint file (ours, MAE's, MoCo v3's, DINO's, timm's, transformers'),
    timm:NAME, hf:NAME, or random:NAME. Reconstructions need a run, which has a decoder."""

    data: DataArgument = ("photos",)
    """Images to choose from and to search: folders, list files, photos or digits."""

    most: int = 1000
    """Images of DATA that are embedded for the search, drawn at random; the page works while this
    goes on. Kept in the run's cache/ for the next time."""

    image_size: int | tuple[int, int] | None = None
    """Side of the input in pixels, or height and width; larger gives finer maps of attention and
    features. Default: the encoder's own."""

    host: str = "127.0.0.1"
    """Address to serve on. Any other than this machine's own lets others in, without a password."""

    port: int = 8017
    """Port to serve on; 0 or one that is taken: the next that is free."""

    open: bool = False
    """Open the page in the browser."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA where there is one."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto: bf16 on CUDA, fp32 on a CPU."""

    def __post_init__(self) -> None:
        require(
            len(self.data) > 0 and all(self.data),
            "DATA is empty: name a folder, a list file, photos or digits",
        )
        require(self.most >= 1, f"most must be at least 1, not {self.most}")
        require(
            0 <= self.port <= LAST_PORT, f"port must lie between 0 and {LAST_PORT}, not {self.port}"
        )
        require(
            self.host.strip() == self.host != "" and "/" not in self.host,
            f"--host '{self.host}' is no address: name one as 127.0.0.1, without http:// or a port",
        )
