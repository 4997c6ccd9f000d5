"""The `mvmae` command: a command, what it works on, and any field of its config by name.

    mvmae pretrain my_images/ --recipe tiny-cpu --epochs 100
    mvmae pretrain --recipe runs/pretrain/config.json --out runs/again
    mvmae knn runs/pretrain my_labelled_images/

Only the chosen command is imported, so `mvmae --help` answers without loading torch.
Exit status: 0; 2 and one plain line for what the user got wrong; 1 for our own faults; 130 and 143
after SIGINT and SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from mvmae import recipes
from mvmae.cli.commands import COMMANDS, GROUPS, Command
from mvmae.cli.parse import (
    DEFAULTS,
    RECIPE_HELP,
    default_of,
    parse_config,
    warm_up_in_words,
    warmed_up_in_time,
)
from mvmae.errors import ToldError, UserError, line_of, nearest, printable
from mvmae.recipes import paper
from mvmae.version import __version__

WORDS = (*COMMANDS, *GROUPS, "recipes")
HELD_BACK = 5.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Threads that spin while they wait make a training step 4 to 14 times as slow when anything
    # else runs on the machine (docs/log.md). OpenMP reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _processes() > 1:  # torch's own words about a connection that ended, with a stack
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        status = _main(args)
        sys.stdout.flush()
        return status
    except ToldError:
        return 2
    except BrokenPipeError:  # `mvmae recipes | head`
        # Python flushes once more at its end; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if not _process():
            print("mvmae: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if (line := line_of(error)) is None:
            raise
        return _refused(line)


def _process() -> int:
    """Number of this process among those that `torchrun` started; 0 on its own."""
    return int(os.environ.get("RANK", "0")) if _processes() > 1 else 0


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def _refused(complaint: str) -> int:
    if number := _process():
        # All fail alike: the first one says it, and torchrun ends the rest. This one alone has
        # failed, and must speak, if nothing came in some seconds.
        time.sleep(HELD_BACK)
        complaint = f"process {number}: {complaint}"
    print(f"mvmae: {printable(' '.join(complaint.split()))}", file=sys.stderr)
    return 2


def _main(args: list[str]) -> int:
    match args:
        case [] | ["-h" | "--help" | "help", *_]:
            print(usage())
        case ["--version", *_]:
            print(f"mvmae {__version__}")
        case ["recipes", *rest]:
            list_recipes(rest)
        case [group] | [group, "-h" | "--help" | "help", *_] if group in GROUPS:
            print(group_usage(group))
        case [group, name, *rest] if group in GROUPS:
            return run_command(f"{group} {name}", rest)
        case [("--quiet" | "--json") as flag, name, *rest]:
            return _main([name, *rest, flag])
        case [name, *rest]:
            return run_command(name, rest)
    return 0


def run_command(name: str, args: list[str]) -> int:
    """Run a command; `--quiet` and `--json`, which are not part of a config, direct its output."""
    from mvmae import terminal  # which loads rich, and no torch

    words, args = terminal.flags(args)
    with terminal.output(words, silent=_process() > 0):
        command, settings = parse(name, args)
        if settings is None:  # --help
            return 0
        if not command.shares and _processes() > 1:
            raise UserError(f"mvmae {name} runs in one process: start it without torchrun")
        return importlib.import_module(command.module).run(settings) or 0


def parse(name: str, args: list[str]) -> tuple[Command, Any]:
    """Turn a command's name and its arguments into the command and its config.

    Raises:
        UserError: The command, a flag or a value is not one that works.
    """
    if name not in COMMANDS:
        group = f"{name.split()[0]} " if " " in name else ""
        raise UserError(
            f"no command '{name}'{nearest(name, WORDS)} (`mvmae {group}--help` lists them)"
        )
    command = COMMANDS[name]
    if {"-h", "--help"} & set(args):
        print(RECIPE_HELP)
    default, args = DEFAULTS.get(name, default_of)(name, args)
    in_time = warmed_up_in_time(default, args)
    settings = parse_config(command.config, in_time, args, prog=f"mvmae {name}")
    if settings and in_time is not default:
        print(warm_up_in_words(default, settings))
    return command, settings


def usage() -> str:
    """The commands, and where to begin."""
    lines = [
        "usage: mvmae COMMAND ... [--field value]      mvmae COMMAND --help",
        "",
        "From a folder of unlabelled images to a Vision Transformer that knows them.",
        "",
    ]
    lines += [f"  {name:12} {command.summary}" for name, command in COMMANDS.items()]
    lines += [
        "  recipes      List the recipes.",
        "",
        "Begin with:  mvmae pretrain my_images/      then:  mvmae knn runs/pretrain my_labelled/",
    ]
    return "\n".join(lines)


def group_usage(group: str) -> str:
    """The commands of two words that begin with one."""
    own = {name: command for name, command in COMMANDS.items() if name.split()[0] == group}
    lines = [
        f"usage: mvmae {group} COMMAND ... [--field value]      mvmae {group} COMMAND --help",
        "",
        GROUPS[group],
        "",
        *(f"  {name:12} {command.summary}" for name, command in own.items()),
    ]
    return "\n".join(lines)


def list_recipes(args: list[str]) -> None:
    """Print the recipes, or those named in full; or tell them in JSON.

    Raises:
        UserError: There is no recipe of a name.
    """
    from mvmae import terminal

    words, rest = terminal.flags(args)
    names = [word for word in rest if word not in ("-h", "--help")]
    told = "\n\n".join(map(recipe_told, names)) if names else recipe_list()
    with terminal.output(words):
        print(told)
        summaries = {
            command: {
                name: one.summary for name, one in named.items() if name in names or not names
            }
            for command, named in recipes.BY_COMMAND.items()
        }
        terminal.emit("result", {"command": "recipes", "recipes": summaries})


def recipe_told(name: str) -> str:
    """What a recipe is for and, of the paper's, its figure, its choices and its cost.

    Raises:
        UserError: No command has such a recipe.
    """
    commands = [command for command, named in recipes.BY_COMMAND.items() if name in named]
    if not commands:
        known = [one for named in recipes.BY_COMMAND.values() for one in named]
        raise UserError(f"no recipe '{name}'{nearest(name, known)} (`mvmae recipes` lists them)")
    lines = []
    for command in commands:
        lines += [f"{name}, of mvmae {command}: {recipes.BY_COMMAND[command][name].summary}"]
    return "\n".join([*lines, *map(paper.described, paper.rows_of(name))])


def recipe_list() -> str:
    """The recipes and the variants, a line each."""
    lines = []
    for command, named in recipes.BY_COMMAND.items():
        lines += [f"{command}:", *(f"  {name:15} {one.summary}" for name, one in named.items()), ""]
    lines += ["Variants, for any recipe of pretrain (demo+mae):"]
    for name, variant in recipes.VARIANTS.items():
        lines.append(f"  +{name:14} {(variant.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)
