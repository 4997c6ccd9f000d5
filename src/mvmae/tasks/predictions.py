"""What `detect --predict` and `segment --predict` share: where predictions go."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

from mvmae.data.sources.source import Source
from mvmae.errors import UserError


def refuse_own_images(out: Path, source: Source) -> None:
    """Images that `--overwrite` would delete are no place to write to.

    Raises:
        UserError: One lies in `out`.
    """
    whole = out.resolve()
    for index in range(len(source)):
        if Path(source.path(index)).resolve().is_relative_to(whole):
            raise UserError(
                f"the images lie in {out}, where the predictions are to go: choose another --out"
            )


def names_of(source: Source) -> list[str]:
    """Each image's path below what they have in common, without suffix unless two would be one."""
    paths = [Path(source.path(index)) for index in range(len(source))]
    base = Path(os.path.commonpath([path.parent for path in paths]))
    inside = [path.relative_to(base) for path in paths]
    plain = Counter(path.with_suffix("") for path in inside)
    return [
        str(path.with_suffix("") if plain[path.with_suffix("")] == 1 else path) for path in inside
    ]


def put_in_place(unfinished: Path, out: Path) -> None:
    """Give the whole folder its name, in place of what may go."""
    if out.exists():
        shutil.rmtree(out)
    unfinished.rename(out.resolve())
