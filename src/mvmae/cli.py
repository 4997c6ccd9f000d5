"""The `mvmae` command: a verb, what it works on, and any field of its config by name.

    mvmae pretrain my_images/ --recipe tiny-cpu --epochs 100
    mvmae pretrain --recipe runs/pretrain/config.json --out runs/again
    mvmae knn runs/pretrain my_labelled_images/

Only the chosen verb is imported, so `mvmae --help` answers without loading torch.
Exit status: 0; 2 and one plain line for what the user got wrong; 1 for our own faults; 130 and 143
after SIGINT and SIGTERM.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from mvmae import config as configs
from mvmae import paper, recipes
from mvmae.complaints import one_line
from mvmae.config import DataShowConfig, PretrainConfig
from mvmae.errors import ToldError, UserError, line_of, nearest, printable
from mvmae.verbs import GROUPS, VERBS, Verb
from mvmae.version import __version__

WORDS = (*VERBS, *GROUPS, "recipes")
HELD_BACK = 5.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status."""
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
            return run_verb(f"{group} {name}", rest)
        case [("--quiet" | "--json") as flag, name, *rest]:
            return _main([name, *rest, flag])
        case [name, *rest]:
            return run_verb(name, rest)
    return 0


def run_verb(name: str, args: list[str]) -> int:
    """Run a verb with its output where `--quiet` and `--json` say; both are no part of a config."""
    from mvmae.engine import terminal  # which loads rich, and no torch

    words, args = terminal.flags(args)
    with terminal.output(words, silent=_process() > 0):
        verb, settings = parse(name, args)
        if settings is None:  # --help
            return 0
        if not verb.shares and _processes() > 1:
            raise UserError(f"mvmae {name} runs in one process: start it without torchrun")
        return importlib.import_module(verb.module).run(settings) or 0


def parse(name: str, args: list[str]) -> tuple[Verb, Any]:
    """Turn a verb's name and its arguments into the verb and its config.

    Raises:
        UserError: The verb, a flag or a value is not one that works.
    """
    if name not in VERBS:
        group = f"{name.split()[0]} " if " " in name else ""
        raise UserError(
            f"no verb '{name}'{nearest(name, WORDS)} (`mvmae {group}--help` lists them)"
        )
    verb = VERBS[name]
    if {"-h", "--help"} & set(args):
        print(RECIPE_HELP)
    default, args = DEFAULTS.get(name, default_of)(name, args)
    return verb, parse_config(verb.config, default, args, prog=f"mvmae {name}")


class _Paper(io.StringIO):
    """A stand-in for stdout: tyro asks it whether to draw coloured boxes, or boxes at all."""

    encoding = "utf-8"


def parse_config(kind: type, default: Any, args: list[str], *, prog: str) -> Any:
    """Let tyro read the arguments, and put what it complains of into one line."""
    complaint = io.StringIO()
    options = {} if default is None else {"default": default}
    out = sys.stdout if {"-h", "--help"} & set(args) else _Paper()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=args, prog=prog, **options)
    except SystemExit as end:
        if end.code:
            raise UserError(one_line(complaint.getvalue(), prog)) from None
        return None


def default_of(verb: str, args: list[str]) -> tuple[Any, list[str]]:
    """The config that the other arguments change, none for the class's defaults, and those.

    `--recipe` names it: a recipe of the verb, a run's config.json, or the JSON of a result. A run
    to be resumed brings its own.
    """
    recipe, rest = _take_option(args, "--recipe")
    if recipe is not None:
        if _take_option(rest, "--recipe")[0] is not None:
            raise UserError("--recipe is given twice")
        return recipe_or_file(verb, recipe), rest
    out = _take_option(rest, "--out")[0]
    can_resume = "resume" in VERBS[verb].config.__dataclass_fields__
    if can_resume and "--resume" in rest and out and (Path(out) / "config.json").is_file():
        return recipe_or_file(verb, str(Path(out) / "config.json")), rest
    return None, rest


def pretrain_default(verb: str, args: list[str]) -> tuple[PretrainConfig, list[str]]:
    """As `default_of`, and never none.

    Without `--recipe` a run to be resumed brings its own, own images get `tiny-cpu` or, on a
    machine with CUDA, `vit-small-128`, and no images at all get `demo`.
    """
    recipe, rest = _take_option(args, "--recipe")
    if recipe is not None:
        if _take_option(rest, "--recipe")[0] is not None:
            raise UserError("--recipe is given twice: RECIPE+VARIANT joins two")
        return recipe_or_file(verb, recipe), rest
    if "--resume" in rest:
        out = Path(_take_option(rest, "--out")[0] or PretrainConfig().out)
        if not (out / "config.json").is_file():
            raise UserError(f"no run in {out} to resume: leave out --resume to begin one")
        return recipe_or_file(verb, str(out / "config.json")), rest
    demo = recipes.named("demo")
    if {"-h", "--help"} & set(rest):
        return demo, rest
    if parse_config(PretrainConfig, demo, rest, prog="mvmae pretrain").data == demo.data:
        return demo, rest
    name = "vit-small-128" if _has_cuda() else "tiny-cpu"
    print(f"recipe: {name} ({recipes.RECIPES[name].summary} --recipe chooses another)")
    return recipes.named(name), rest


NOT_GIVEN = "ENCODER"
RECIPE_HELP = (  # above the options, which tyro lists
    "--recipe NAME|FILE.json begins from a recipe (`mvmae recipes` lists them), a run's\n"
    "config.json or the JSON of a result; the other options change that.\n"
    "--quiet says nothing but errors and warnings that matter; --json prints JSON only, an object\n"
    "a line, and the result last.\n"
)


BY_MACHINE = {  # recipes where none is named: on a CPU, and with CUDA
    "finetune": ("small-finetune", "paper-finetune"),
    "segment": ("small", "paper-ade20k"),
    "detect": ("small", "li2021"),
}


def supervised_default(verb: str, args: list[str]) -> tuple[Any, list[str]]:
    """As `default_of`; without a recipe, the verb's for this machine.

    The help shows the class's defaults, which are those of the recipe for a machine with CUDA.
    """
    given, rest = default_of(verb, args)
    if given is not None or {"-h", "--help"} & set(rest):
        return given, rest
    name = BY_MACHINE[verb][_has_cuda()]
    recipe, kind = recipes.BY_VERB[verb][name], VERBS[verb].config
    if "--resume" in rest:
        out = Path(_take_option(rest, "--out")[0] or recipe.config.out or f"runs/{verb}")
        if not (out / "config.json").is_file():
            raise UserError(f"no run in {out} to resume: leave out --resume to begin one")
        return recipe_or_file(verb, str(out / "config.json")), rest
    data = kind.__dataclass_fields__["data"].default
    chosen = replace(recipe.config, encoder=NOT_GIVEN, data=data)
    asked = parse_config(kind, chosen, rest, prog=f"mvmae {verb}")
    if asked.encoder == NOT_GIVEN:
        raise UserError(
            "no ENCODER: name a run folder, a checkpoint file, timm:NAME, hf:NAME or random:NAME"
        )
    if getattr(asked, "predict", None) is None:
        print(f"recipe: {name} ({recipe.summary} --recipe chooses another)")
    return chosen, rest


def own_recipe(_verb: str, args: list[str]) -> tuple[None, list[str]]:
    """The verb's --recipe is an option of its own: it is another verb's recipe."""
    return None, args


def data_show_default(_verb: str, args: list[str]) -> tuple[DataShowConfig, list[str]]:
    """Model and views of a recipe of pretrain; without one, of that for this machine."""
    recipe, rest = _take_option(args, "--recipe")
    if recipe is None:
        is_large = not {"-h", "--help"} & set(rest) and _has_cuda()
        recipe = "vit-small-128" if is_large else "tiny-cpu"
    config = recipe_or_file("pretrain", recipe)
    return DataShowConfig(model=config.model, views=config.views, seed=config.seed), rest


DEFAULTS = {
    "pretrain": pretrain_default,
    "data show": data_show_default,
    "ablate": own_recipe,
} | dict.fromkeys(BY_MACHINE, supervised_default)


def recipe_or_file(verb: str, recipe: str) -> Any:
    """The config that a recipe's name, a config.json or a result's JSON stands for.

    Raises:
        UserError: There is no such recipe or file, or it is of another verb.
    """
    if not recipe.endswith(".json"):
        return recipes.of(verb, recipe)
    try:
        content = json.loads(Path(recipe).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {recipe}: {error}") from error
    except ValueError as error:
        raise UserError(f"{recipe} is not a config: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):  # a result
        if content.get("verb", verb) != verb:
            raise UserError(f"{recipe} is a result of mvmae {content['verb']}, not of {verb}")
        content = content["config"]
    if others := _verbs_of(content, verb):
        raise UserError(f"{recipe} is of mvmae {others[0]}, not of {verb}")
    return configs.from_json(json.dumps(content), VERBS[verb].config, source=recipe)


def _verbs_of(content: Any, verb: str) -> list[str]:
    """Other verbs whose config has all keys of one that this verb's has not."""
    if not isinstance(content, dict):
        return []
    known = {name: set(one.config.__dataclass_fields__) for name, one in VERBS.items()}
    if content.keys() <= known[verb]:
        return []
    return [name for name, fields in known.items() if content.keys() <= fields]


def _take_option(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of `flag VALUE` or `flag=VALUE`, and the arguments without it."""
    for at, word in enumerate(args):
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}="), args[:at] + args[at + 1 :]
        if word == flag:
            if at + 1 == len(args) or args[at + 1].startswith("-"):
                raise UserError(f"{flag} needs a value")
            return args[at + 1], args[:at] + args[at + 2 :]
    return None, args


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def usage() -> str:
    """The verbs, and where to begin."""
    lines = [
        "usage: mvmae VERB ... [--field value]      mvmae VERB --help",
        "",
        "From a folder of unlabelled images to a Vision Transformer that knows them.",
        "",
    ]
    lines += [f"  {name:12} {verb.summary}" for name, verb in VERBS.items()]
    lines += [
        "  recipes      List the recipes.",
        "",
        "Begin with:  mvmae pretrain my_images/      then:  mvmae knn runs/pretrain my_labelled/",
    ]
    return "\n".join(lines)


def group_usage(group: str) -> str:
    """The verbs of two words that begin with one."""
    own = {name: verb for name, verb in VERBS.items() if name.split()[0] == group}
    lines = [
        f"usage: mvmae {group} VERB ... [--field value]      mvmae {group} VERB --help",
        "",
        GROUPS[group],
        "",
        *(f"  {name:12} {verb.summary}" for name, verb in own.items()),
    ]
    return "\n".join(lines)


def list_recipes(args: list[str]) -> None:
    """Print the recipes, or those named in full; or tell them in JSON.

    Raises:
        UserError: There is no recipe of a name.
    """
    from mvmae.engine import terminal

    words, rest = terminal.flags(args)
    names = [word for word in rest if word not in ("-h", "--help")]
    told = "\n\n".join(map(recipe_told, names)) if names else recipe_list()
    with terminal.output(words):
        print(told)
        summaries = {
            verb: {name: one.summary for name, one in named.items() if name in names or not names}
            for verb, named in recipes.BY_VERB.items()
        }
        terminal.emit("result", {"verb": "recipes", "recipes": summaries})


def recipe_told(name: str) -> str:
    """What a recipe is for and, of the paper's, its figure, its choices and its cost.

    Raises:
        UserError: No verb has such a recipe.
    """
    verbs = [verb for verb, named in recipes.BY_VERB.items() if name in named]
    if not verbs:
        known = [one for named in recipes.BY_VERB.values() for one in named]
        raise UserError(f"no recipe '{name}'{nearest(name, known)} (`mvmae recipes` lists them)")
    lines = []
    for verb in verbs:
        lines += [f"{name}, of mvmae {verb}: {recipes.BY_VERB[verb][name].summary}"]
    return "\n".join([*lines, *map(paper.described, paper.rows_of(name))])


def recipe_list() -> str:
    """The recipes and the variants, a line each."""
    lines = []
    for verb, named in recipes.BY_VERB.items():
        lines += [f"{verb}:", *(f"  {name:15} {one.summary}" for name, one in named.items()), ""]
    lines += ["Variants, for any recipe of pretrain (demo+mae):"]
    for name, variant in recipes.VARIANTS.items():
        lines.append(f"  +{name:14} {(variant.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)
