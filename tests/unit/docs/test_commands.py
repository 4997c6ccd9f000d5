"""The commands in the documentation are ones that the command line accepts."""

import re
import shlex

import pytest

from benchmarks.config import BenchConfig
from mvmae.cli.commands import GROUPS
from mvmae.cli.parse import parse, parse_config
from tests.unit.docs.pages import LIVING, code_blocks, page_name

# Not parsed: parts left out, other programs, commands that need files of an earlier run.
NOT_ALONE = re.compile(r"\.\.\.|\||--resume|\.json|--help|^recipes|^--version|\{")
PROGRAM = re.compile(r"^(?:torchrun .*-m mvmae (?:-- )?|python -m mvmae |mvmae )")
BENCHMARKS = re.compile(r"^python -m benchmarks ")


def commands_on(page, program=PROGRAM):
    """Return what follows the program in the commands of a page's blocks, without comments."""
    found = []
    for block in code_blocks(page, "", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.split(r"\s#", line.removeprefix("$ "))[0]
            parts = [part.strip() for part in re.split(r"&&|;", command)]
            found += [program.sub("", part) for part in parts if program.match(part)]
    return [command for command in found if not NOT_ALONE.search(command)]


@pytest.mark.parametrize("page", LIVING, ids=page_name)
def test_commands_on_a_page_are_accepted(page):
    for command in commands_on(page):
        name, *rest = shlex.split(command)
        if name in GROUPS:
            name, rest = f"{name} {rest[0]}", rest[1:]
        parse(name, rest)


@pytest.mark.parametrize("page", LIVING, ids=page_name)
def test_benchmarks_on_a_page_are_accepted(page):
    for command in commands_on(page, BENCHMARKS):
        parse_config(BenchConfig, None, shlex.split(command), prog="python -m benchmarks")


def test_there_are_commands_to_read():
    assert sum(len(commands_on(page)) for page in LIVING) > 120
    assert sum(len(commands_on(page, BENCHMARKS)) for page in LIVING) > 5
