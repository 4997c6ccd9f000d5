"""Export encoders as graphs that run without mvmae: ONNX and torch.export programs."""

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
MAX_ONNX_BYTES = 2**31 - 2**24  # of weights: protobuf allows 2 GiB, less the graph


class Graph(nn.Module):
    """Map normalised images to pooled features and patch features."""

    def __init__(self, encoder: Encoder, pool: Pool) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(
        self, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B N D"]]:
        """Encode images."""
        tokens = self.encoder(images)
        return self.encoder.pool(tokens, self.pool), tokens[:, self.encoder.num_prefix :]


def _trace(opened: OpenedEncoder) -> torch.export.ExportedProgram:
    """Trace the graph for any number of images."""
    encoder = opened.encoder
    # From a batch of one, torch.export would infer that the batch size is constant.
    example = torch.zeros(2, encoder.in_channels, *encoder.image_size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    # In eval mode, which the trace keeps for ever.
    graph = Graph(encoder, opened.pool).eval()
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=shapes)


def write_pt2(folder: Path, opened: OpenedEncoder) -> None:
    """Write a torch.export program; encoder.json inside describes the preprocessing."""
    facts = {"encoder.json": json.dumps(encoders.encoder_metadata(opened))}
    buffer = io.BytesIO()  # on a full disk, torch's own file writer would abort the process
    torch.export.save(_trace(opened), buffer, extra_files=facts)
    (folder / PT2).write_bytes(buffer.getbuffer())


def pt2_snippet(folder: Path, _opened: OpenedEncoder) -> str:
    """Python code that loads the program."""
    return (
        "import torch\n"
        f"model = torch.export.load({str(folder / PT2)!r}).module()\n"
        "pooled, patches = model(images)"
    )


def load_pt2(folder: Path, _opened: OpenedEncoder) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Load the program, which computes pooled and patch features."""
    return torch.export.load(folder / PT2).module()


def write_onnx(folder: Path, opened: OpenedEncoder) -> None:
    """Write an ONNX file; its metadata describe the preprocessing."""
    weights = sum(value.nbytes for value in opened.encoder.state_dict().values())
    exported: Any = torch.onnx.export(
        _trace(opened),
        input_names=["images"],
        output_names=["pooled", "patches"],
        dynamo=True,
        verbose=False,
    )
    exported.model.metadata_props["encoder"] = json.dumps(encoders.encoder_metadata(opened))
    # protobuf cannot hold 2 GiB, so the weights of larger encoders go into a file beside the graph.
    exported.save(folder / ONNX, external_data=weights > MAX_ONNX_BYTES)


def onnx_snippet(folder: Path, _opened: OpenedEncoder) -> str:
    """Python code that loads the file."""
    return (
        "import onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(folder / ONNX)!r})\n"
        'pooled, patches = session.run(None, {"images": images})  # float32, B x C x H x W'
    )


def load_onnx(folder: Path, _opened: OpenedEncoder) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Load the file in ONNX Runtime, which computes pooled and patch features."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # the default is every core
    session = onnxruntime.InferenceSession(
        str(folder / ONNX), options, providers=["CPUExecutionProvider"]
    )

    def compute(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(["pooled", "patches"], {"images": images.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return compute
