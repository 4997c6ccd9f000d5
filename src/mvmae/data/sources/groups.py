"""Which images belong together, such as those of one patient: a list's column, or their paths."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int

from mvmae.data.sources.base import Source
from mvmae.errors import UserError


def group_numbers(source: Source, pattern: str | None) -> Int[np.ndarray, " images"] | None:
    """A number for each image, the same for those of one group; none where there are no groups.

    An image of no group is one of its own.

    Args:
        source: The images; a list may have a column of groups.
        pattern: A regular expression, searched for in each path: what its brackets match is the
            group, or all that it matches where it has none. None: the source's own groups.

    Raises:
        UserError: The expression matches no path.
    """
    names = [
        source.group(index) if pattern is None else _found(pattern, source.path(index))
        for index in range(len(source))
    ]
    if not any(names):
        if pattern is None:
            return None
        raise UserError(
            f"group_regex '{pattern}' is found in none of the {len(source)} paths, "
            f"{source.path(0)} for one"
        )
    known: dict[str, int] = {}
    return np.array(
        [
            known.setdefault(name, len(known)) if name else -1 - index
            for index, name in enumerate(names)
        ],
        dtype=np.int64,
    )


def _found(pattern: str, path: str) -> str | None:
    """What says the group: brackets' matches joined, so that two pairs make finer groups."""
    match = re.search(pattern, path)
    if match is None:
        return None
    return "\0".join(part or "" for part in match.groups()) or match[0]


def describe_groups(groups: Int[np.ndarray, " images"]) -> str:
    """How many there are, for the screen."""
    _, counts = np.unique(groups[groups >= 0], return_counts=True)
    alone = int((groups < 0).sum())
    rest = f", {alone} images belong to none" if alone else ""
    return f"{len(counts)} groups of {counts.min()} to {counts.max()} images{rest}"
