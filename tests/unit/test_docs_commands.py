"""The commands that the documentation shows are ones that mvmae takes."""

import re
import shlex
from pathlib import Path

import pytest

from mvmae.cli.main import GROUPS
from mvmae.cli.parse import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(?:console)?\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
# What cannot be parsed alone: parts left out, other programs, files that a run would have left.
NOT_ALONE = re.compile(r"\.\.\.|\||--resume|\.json|--help|^mvmae recipes|--version|\{")


def commands_of(page: Path) -> list[str]:
    """Commands in the blocks of a page, joined where a line goes on, without comments."""
    found = []
    for block in FENCED.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            said = re.split(r"\s#", line.removeprefix("$ "))[0]
            found += [part.strip() for part in re.split(r"&&|;", said)]
    return [one for one in found if one.startswith("mvmae ") and not NOT_ALONE.search(one)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_the_page_are_read(page):
    for line in commands_of(page):
        name, *rest = shlex.split(line)[1:]
        if name in GROUPS:
            name, rest = f"{name} {rest[0]}", rest[1:]
        parse(name, rest)


def test_there_are_commands_to_read():
    assert sum(len(commands_of(page)) for page in PAGES) > 120
