"""What drawn encoders are called, and where a picture goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvmae.errors import UserError
from mvmae.storage import marks, run_folder
from mvmae.storage.atomic import write_bytes

KINDS = ("random:", "timm:", "hf:")
OF_A_RUN = ("checkpoints", "encoder.safetensors", "last.pt")  # names that every run has
MOST_NAMED = 3  # in a title


def headings(encoders: Sequence[str]) -> list[str]:
    """A short name for each, no two alike unless the encoders are: last parts of their paths."""
    parts = [_parts(encoder) for encoder in encoders]
    lengths = [1] * len(parts)
    while True:
        names = [_joined(part, length) for part, length in zip(parts, lengths, strict=True)]
        doubled = [
            at
            for at, name in enumerate(names)
            if names.count(name) > 1 and lengths[at] < len(parts[at][1])
        ]
        if not doubled:
            return names
        for at in doubled:
            lengths[at] += 1


def _parts(encoder: str) -> tuple[str, list[str]]:
    """What stands before a path, and its parts without those that every run has."""
    kind = next((kind for kind in KINDS if encoder.startswith(kind)), "")
    if kind in KINDS[1:]:
        return "", [encoder]
    path = Path(encoder.removeprefix(kind))
    known = [part for part in path.resolve().parts if part not in OF_A_RUN]
    if kind and not path.exists():  # random:vit_small
        known = [encoder.removeprefix(kind)]
    if path.is_file() and path.name not in OF_A_RUN and len(known) > 1:
        known = [*known[:-2], "/".join(known[-2:])]  # its run says more than previous.pt
    return kind, known


def _joined(parts: tuple[str, list[str]], length: int) -> str:
    return parts[0] + "/".join(parts[1][-length:])


def together(names: Sequence[str]) -> str:
    """The names in a title, of many the first."""
    if len(names) > MOST_NAMED:
        return f"{names[0]} and {len(names) - 1} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def picture_file(encoder: str, out: Path | None, name: str, data: Sequence[str]) -> Path:
    """Where a picture goes: `out`, or `name` among the run's figures.

    Raises:
        UserError: ENCODER is not there, or no run folder and no --out is given, or --out cannot be
            a PNG, or a file there is not ours.
    """
    if out is None:
        if not encoder.startswith(KINDS) and not Path(encoder).exists():
            raise UserError(f"no such encoder: {encoder}")
        if not run_folder.is_run(Path(encoder)):
            raise UserError(f"{encoder} is no run folder: say where to draw with --out FILE.png")
        file = Path(encoder) / "figures" / name
        marks.require_place(file)
        return file
    require_picture(out, data)
    return out


def require_picture(out: Path, data: Sequence[str]) -> None:
    """Make sure that a picture of DATA can go there.

    Raises:
        UserError: It is no PNG, can be no file, lies among the images, or would replace a file that
            is not ours.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} must end in .png")
    marks.require_place(out)
    marks.require_replaceable(out)
    marks.require_outside(out, tuple(data))


def write(file: Path, picture: bytes) -> None:
    """Write a PNG, SVG or PDF with our mark, whole or not at all."""
    run_folder.make(file.parent)
    content = marks.signed(picture)
    write_bytes(file, content)
