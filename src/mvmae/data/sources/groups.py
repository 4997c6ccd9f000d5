"""Groups of images, such as those of one patient, from a list's column or from paths."""

import re

import numpy as np
from jaxtyping import Int

from mvmae.data.sources.base import Source
from mvmae.data.sources.string_table import encode_words
from mvmae.errors import UserError


def group_numbers(source: Source, pattern: str | None) -> Int[np.ndarray, " images"] | None:
    """Number the groups of images; None without groups.

    An image without a group gets a separate number, below zero.

    Args:
        source: The images.
        pattern: A regular expression that is searched for in each path. The group is what its
            brackets match, or the whole match without brackets. None: the source's own groups.

    Raises:
        UserError: The expression matches no path.
    """
    names = [
        source.group(index) if pattern is None else _match_group(pattern, source.path(index))
        for index in range(len(source))
    ]
    words = [name or "" for name in names]
    if not any(words):
        if pattern is None:
            return None
        raise UserError(
            f"group_regex '{pattern}' matches none of the {len(source)} paths, such as "
            f"{source.path(0)}"
        )
    in_order = dict.fromkeys(filter(None, words))
    codes = encode_words(words, [*in_order]).codes.astype(np.int64)
    # Below zero and all different, so that no two of them count as one group.
    return np.where(codes < 0, -1 - np.arange(len(codes)), codes)


def _match_group(pattern: str, path: str) -> str | None:
    """The matches of all brackets joined, so that two pairs of brackets make finer groups."""
    match = re.search(pattern, path)
    if match is None:
        return None
    return "\0".join(part or "" for part in match.groups()) or match[0]


def describe_groups(groups: Int[np.ndarray, " images"]) -> str:
    """Number and sizes of the groups, in words."""
    _, counts = np.unique(groups[groups >= 0], return_counts=True)
    alone = int((groups < 0).sum())
    rest = f", {alone} images belong to none" if alone else ""
    return f"{len(counts)} groups of {counts.min()} to {counts.max()} images{rest}"
