"""The `mvmae` command line: a command, its input, and any field of its config by name.

    mvmae pretrain my_images/ --recipe tiny-cpu --epochs 100
    mvmae pretrain --recipe runs/pretrain/config.json --out runs/again
    mvmae knn runs/pretrain my_labelled_images/

Only the chosen command is imported, so `mvmae --help` answers without loading torch.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

from mvmae.cli.commands import COMMANDS, GROUPS
from mvmae.errors import ReportedError, UserError, printable, suggest, user_message
from mvmae.version import __version__

NAMES = (*COMMANDS, *GROUPS, "recipes")
ERROR_DELAY = 5.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The command's exit status; 2 after one plain line about what the user can fix; 130 after
        SIGINT (commands that train return 130 or 143 themselves, once they have saved).

    Raises:
        Exception: A fault of ours; Python prints the traceback and exits with 1.
    """
    set_environment()
    with reported_errors() as ended:
        name, args = choose_command(list(sys.argv[1:] if argv is None else argv))
        if name:
            from mvmae import terminal  # loads rich
            from mvmae.cli.parse import parse  # loads tyro

            command = COMMANDS[name]
            words, args = terminal.flags(args)
            with terminal.output(words, silent=_rank() > 0):
                config = parse(name, args)
                if config is not None and not command.is_shared and num_processes() > 1:
                    raise UserError(f"mvmae {name} runs in one process: start it without torchrun")
                if config is not None:  # None after --help
                    ended.status = command.run(config) or 0
        sys.stdout.flush()
    return ended.status


def set_environment() -> None:
    """Set what torch reads when it is loaded, unless the user has set it."""
    # Threads that spin while they wait make a training step 4 to 14 times as slow when anything
    # else runs on the machine (docs/log.md). OpenMP reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if num_processes() > 1:  # torch's own message about a closed connection, with a stack
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


@contextmanager
def reported_errors() -> Iterator[SimpleNamespace]:
    """Turn errors into messages and an exit status, the `status` of what is yielded."""
    ended = SimpleNamespace(status=0)
    try:
        yield ended
    except ReportedError:
        ended.status = 2
    except BrokenPipeError:  # `mvmae recipes | head`
        # Python flushes stdout once more at exit; send that to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ended.status = 0
    except KeyboardInterrupt:
        if not _rank():
            print("mvmae: interrupted", file=sys.stderr)
        ended.status = 130
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        _print_error(message)
        ended.status = 2


def _rank() -> int:
    """Number of this process among those that `torchrun` started; 0 on its own."""
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0


def num_processes() -> int:
    """Count the processes that `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def _print_error(message: str) -> None:
    if rank := _rank():
        # Usually all processes fail alike: rank 0 prints the message and torchrun ends the others.
        # If this one is still alive after some seconds, it failed alone and has to speak.
        time.sleep(ERROR_DELAY)
        message = f"process {rank}: {message}"
    print(f"mvmae: {printable(' '.join(message.split()))}", file=sys.stderr)


def choose_command(args: list[str]) -> tuple[str, list[str]]:
    """Split arguments into the name of a command and the rest.

    Answers what needs no command (help, version, recipes) by itself, and returns an empty name.

    Raises:
        UserError: The command is unknown.
    """
    match args:
        case [] | ["-h" | "--help" | "help", *_]:
            print(usage())
        case ["--version", *_]:
            print(f"mvmae {__version__}")
        case ["recipes", *rest]:
            from mvmae.cli.recipes_command import list_recipes

            list_recipes(rest)
        case [group] | [group, "-h" | "--help" | "help", *_] if group in GROUPS:
            print(group_usage(group))
        case [("--quiet" | "--json") as flag, name, *rest]:
            return choose_command([name, *rest, flag])
        case [group, name, *rest] if group in GROUPS:
            return _known(f"{group} {name}"), rest
        case [name, *rest]:
            return _known(name), rest
    return "", []


def _known(name: str) -> str:
    if name not in COMMANDS:
        group = f"{name.split()[0]} " if " " in name else ""
        raise UserError(
            f"no command '{name}'{suggest(name, NAMES)} (`mvmae {group}--help` lists them)"
        )
    return name


def usage() -> str:
    """List the commands, and say where to begin."""
    lines = [
        "usage: mvmae COMMAND ... [--field value]      mvmae COMMAND --help",
        "",
        "From a folder of unlabelled images to a Vision Transformer that knows them.",
        "",
        *(f"  {name:12} {command.summary}" for name, command in COMMANDS.items()),
        "  recipes      List the recipes.",
        "",
        "Begin with:  mvmae pretrain my_images/      then:  mvmae knn runs/pretrain my_labelled/",
    ]
    return "\n".join(lines)


def group_usage(group: str) -> str:
    """List the two-word commands of a group."""
    own = {name: command for name, command in COMMANDS.items() if name.split()[0] == group}
    lines = [
        f"usage: mvmae {group} COMMAND ... [--field value]      mvmae {group} COMMAND --help",
        "",
        GROUPS[group],
        "",
        *(f"  {name:12} {command.summary}" for name, command in own.items()),
    ]
    return "\n".join(lines)
