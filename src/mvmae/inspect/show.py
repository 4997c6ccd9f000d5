"""Facts about an encoder: origin, sizes, preprocessing, and a run's training and results."""

from collections.abc import Iterator
from typing import Any

from mvmae import encoders, terminal
from mvmae.config.export import ShowConfig
from mvmae.encoders.description import (
    POOLED,
    describe_encoder,
    format_encoder,
    format_headline,
    format_training,
)

MAX_KEYS = 3  # weights listed of those that were left out


def run(config: ShowConfig) -> None:
    """Print what is known about an encoder.

    Raises:
        UserError: There is no such encoder, or it is of a kind that is not supported.
    """
    facts = describe_encoder(config.encoder, encoders.open_encoder(config.encoder))
    terminal.emit("result", {"command": "show"} | facts)
    console = terminal.console()
    for label, text in rows(facts):
        console.print(f"{label:14}{text}")


def rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return a label and a text for each line."""
    yield "encoder", facts["encoder"]
    yield "made by", facts["maker"]
    yield from format_encoder(facts).items()
    yield "token to read", POOLED[facts["pool"]]
    if left_out := facts["left_out"]:
        more = " ..." if len(left_out) > MAX_KEYS else ""
        yield "left out", f"{len(left_out)} keys: {', '.join(left_out[:MAX_KEYS])}{more}"
    if facts["run"]:
        yield "run", facts["run"]["folder"]
        yield from format_training(facts["run"]).items()
    for result in facts["results"]:
        figures = format_headline(result["headline"])
        yield f"{result['command']}", f"{result['data']}: {figures} ({result['file']})"
