"""Encoders as graphs that need no code of mvmae: ONNX, and torch.export's programs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvmae import encoders
from mvmae.config.model import Pool
from mvmae.encoders import OpenedEncoder
from mvmae.method.vit import Encoder

ONNX, PT2 = "encoder.onnx", "encoder.pt2"
LARGEST = 2**31 - 2**24  # bytes of weights in one ONNX file: protobuf's 2 GiB, less the graph


class Graph(nn.Module):
    """Normalised images to pooled features and those of the patches."""

    def __init__(self, encoder: Encoder, pool: Pool) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(
        self, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N D"]]:
        """Encode."""
        tokens = self.encoder(images)
        return self.encoder.pooled(tokens, self.pool), tokens[:, self.encoder.num_prefix :]


def _program(opened: OpenedEncoder) -> torch.export.ExportedProgram:
    """The graph for any number of images."""
    encoder = opened.encoder
    # Of one image, torch.export would take the number for a constant.
    example = torch.zeros(2, encoder.in_channels, *encoder.image_size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    graph = Graph(encoder, opened.pool).eval()
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=shapes)


def write_pt2(folder: Path, opened: OpenedEncoder) -> None:
    """Write torch.export's program; encoder.json inside says how images are prepared."""
    facts = {"encoder.json": json.dumps(encoders.encoder_metadata(opened))}
    whole = io.BytesIO()  # a full disk ends the process inside torch's own writer of files
    torch.export.save(_program(opened), whole, extra_files=facts)
    (folder / PT2).write_bytes(whole.getbuffer())


def lines_pt2(folder: Path) -> str:
    """Python that loads the program."""
    return (
        "import torch\n"
        f"model = torch.export.load({str(folder / PT2)!r}).module()\n"
        "pooled, patches = model(images)"
    )


def load_pt2(folder: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What computes pooled and patch features as the program does."""
    return torch.export.load(folder / PT2).module()


def write_onnx(folder: Path, opened: OpenedEncoder) -> None:
    """Write an ONNX file; its metadata say how images are prepared."""
    weights = sum(value.nbytes for value in opened.encoder.state_dict().values())
    exported: Any = torch.onnx.export(
        _program(opened),
        input_names=["images"],
        output_names=["pooled", "patches"],
        dynamo=True,
        verbose=False,
    )
    exported.model.metadata_props["encoder"] = json.dumps(encoders.encoder_metadata(opened))
    exported.save(folder / ONNX, external_data=weights > LARGEST)


def lines_onnx(folder: Path) -> str:
    """Python that loads the file."""
    return (
        "import onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(folder / ONNX)!r})\n"
        'pooled, patches = session.run(None, {"images": images})  # float32, B x C x H x W'
    )


def load_onnx(folder: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """What computes pooled and patch features as ONNX Runtime does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # its own default asks for every core
    session = onnxruntime.InferenceSession(
        str(folder / ONNX), options, providers=["CPUExecutionProvider"]
    )

    def computed(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(["pooled", "patches"], {"images": images.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return computed
