"""From a table's name to the runs it takes, before any of them begins."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mvmae import recipes
from mvmae.ablate.tables import ABLATIONS, BASE, Ablation, Arm, Change, as_it_is
from mvmae.config.ablate import GRID, AblateConfig
from mvmae.config.files import from_json, to_plain
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError, nearest
from mvmae.storage.results import slug

MOST_RUNS = 1000
OURS = {"data", "out", "seed", "eval_data", "resume", "overwrite", "device", "workers"}


class Cell(NamedTuple):
    """One run: a row of the table with one seed, or something judged that was never trained."""

    key: str
    name: str
    seed: int
    folder: Path
    config: PretrainConfig | None
    """None for what is not trained."""


class Row(NamedTuple):
    """A row of the table, as a run with any seed."""

    arm: Arm
    config: PretrainConfig


class Plan(NamedTuple):
    """The whole table."""

    asked: AblateConfig
    recipe: str
    start: PretrainConfig
    """The recipe with what --set fixes, from which every row begins."""

    ablation: Ablation
    rows: tuple[Row, ...]
    baseline: str

    @property
    def name(self) -> str:
        """Of the table and its files; a grid's tells its values, for several share a folder."""
        if self.asked.table != GRID:
            return self.asked.table
        return slug("-".join([GRID, *(part for words in _varied(self.asked) for part in words)]))

    @property
    def base(self) -> PretrainConfig:
        """The row with which others are compared."""
        return next(row.config for row in self.rows if row.arm.key == self.baseline)

    def trained(self) -> list[Cell]:
        """The runs, all rows of a seed before the next seed."""
        return [cell_of(self.asked, row, seed) for seed in self.asked.seeds for row in self.rows]

    def controls(self) -> list[Cell]:
        """What any encoder must beat: pixels, and the recipe's encoder untrained."""
        folder = self.asked.folder
        pixels = Cell(PIXELS, "raw pixels", 0, folder / PIXELS, None)
        components = Cell(COMPONENTS, "PCA of pixels", 0, folder / COMPONENTS, None)
        return [pixels, components] + [
            Cell(UNTRAINED, "untrained encoder", seed, folder / f"{UNTRAINED}-{seed}", None)
            for seed in self.asked.seeds
        ]


PIXELS, COMPONENTS, UNTRAINED = "raw-pixels", "pca-pixels", "untrained"
SEEDLESS = (PIXELS, COMPONENTS)


def cell_of(asked: AblateConfig, row: Row, seed: int) -> Cell:
    """A row's run with one seed."""
    folder = asked.folder / f"{row.arm.key}-{seed}"
    return Cell(row.arm.key, row.arm.name, seed, folder, replace(row.config, seed=seed, out=folder))


def plan_of(asked: AblateConfig) -> Plan:
    """What to run.

    Raises:
        UserError: There is no such table, recipe, field or baseline, or a row cannot be.
    """
    ablation = _grid(asked) if asked.table == GRID else _named(asked.table)
    name, recipe = recipe_of(asked)
    fixed = {words[0]: words[1] for words in asked.set if len(words) == 2}
    recipe = with_values(recipe, fixed) if fixed else recipe
    base = replace(
        recipe,
        data=asked.data,
        device=asked.device,
        workers=asked.workers,
        eval_data=None,
        seed=0,
        resume=False,
        overwrite=False,
    )
    rows = _rows(asked, ablation, base)
    baseline = _baseline(asked, ablation, rows)
    if baseline == BASE and all(row.arm.key != BASE for row in rows):
        rows.insert(0, Row(Arm(BASE, "as the recipe", as_it_is), base))
    require_runs(len(rows), asked)
    return Plan(asked, name, base, ablation, tuple(rows), baseline)


def require_runs(rows: int, asked: AblateConfig) -> None:
    """Make sure that nobody waits for more runs than anybody means.

    Raises:
        UserError: There would be more than `MOST_RUNS`.
    """
    if (count := rows * len(asked.seeds)) > MOST_RUNS:
        raise UserError(f"{count} runs are more than {MOST_RUNS}: fewer values, or fewer seeds")


def recipe_of(asked: AblateConfig) -> tuple[str, PretrainConfig]:
    """The recipe's name and config; where none is named, as for `pretrain`.

    Raises:
        UserError: There is none such, or the file is no config.
    """
    name = asked.recipe
    if name is None and asked.data == recipes.named("pretrain", "demo").data:
        name = "demo"
    elif name is None:
        name = "vit-small-128" if torch.cuda.is_available() else "tiny-cpu"
    if not name.endswith(".json"):
        return name, recipes.named("pretrain", name)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {name}: {error}") from error
    content: Any = {"model": None}
    with contextlib.suppress(ValueError):  # no JSON at all is complained of below
        content = json.loads(text)
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{name} is no config of mvmae pretrain: RUN/config.json is one")
    return name, from_json(text, PretrainConfig, source=name)


def with_values(config: PretrainConfig, words: Mapping[str, str]) -> PretrainConfig:
    """The config with some fields, `model.mask-ratio`, as the command line gives them.

    They are set at once: one alone may not go with the rest.

    Raises:
        UserError: There is no such field, it is not for --set, or the value is none of its kind.
    """
    plain = to_plain(config)
    known = [".".join(parts) for parts in _paths(plain)]
    for name, word in words.items():
        dotted = _dotted(name)
        if dotted not in known:
            hint = nearest(dotted, known).replace("_", "-")
            raise UserError(f"--set {name}: pretrain has no such field{hint}")
        if dotted in OURS:
            raise UserError(
                f"--set {name}: ablate itself decides {dotted.replace('_', '-')} for each run: "
                "give it DATA, --out, --seeds, --eval-data, --device and --workers"
            )
        *groups, last = dotted.split(".")
        place = plain
        for group in groups:
            place = place[group]
        place[last] = _value(word, like=place[last])
    if "warmup_epochs" not in map(_dotted, words) and isinstance(plain["epochs"], int):
        plain["warmup_epochs"] = recipes.warmup_for(config, plain["epochs"])
    try:
        return from_json(json.dumps(plain), PretrainConfig, source="it")
    except UserError as error:
        said = str(error)
        blamed = {n: w for n, w in words.items() if _dotted(n).rpartition(".")[2] in said} or words
        given = " ".join(f"--set {name} {word}" for name, word in blamed.items())
        raise UserError(f"{given}: {_plain(re.sub(r' @ it[^;]*', '', said))}") from error


IN_WORDS = (  # what a config's reader says of a value
    (
        r"a value is not Literal \((.*?) not in literal typing\.Literal\[(.*?)\]\)",
        r"\1 is none of \2",
    ),
    (r"a value is not at int \((.*?)\)", r"\1 is no whole number"),
    (r"a value is not at float \((.*?)\)", r"\1 is no number"),
    (r"a value is not bool \((.*?)\)", r"\1 is neither true nor false"),
    (r"a value is not \S+ \(Not enough values.*?\]\)", "too few values: a list is written 0.2,1"),
    ("a value", "that"),
)


def _plain(said: str) -> str:
    for pattern, words in IN_WORDS:
        said = re.sub(pattern, words, said)
    return said


def _dotted(name: str) -> str:
    """A field's name as the code has it."""
    return name.lstrip("-").replace("-", "_")


def _paths(plain: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in _paths(value))
        else:
            yield (name,)


def _value(word: str, *, like: Any = None) -> Any:
    """A word as JSON would have it; `0.2,1` is a list, and what is no number a text.

    In the place of a text it is one: `none` is a value of `model.head`, and `8` of `views.depth`.
    """
    if isinstance(like, str):
        return word
    if isinstance(like, list) or "," in word:
        return [_value(part) for part in word.split(",")]
    try:
        return None if word.lower() == "none" else json.loads(word.lower())
    except ValueError:
        return word


def _named(table: str) -> Ablation:
    if table not in ABLATIONS:
        known = (*ABLATIONS, GRID)
        raise UserError(
            f"no table '{table}'{nearest(table, known)} (there are: {', '.join(known)})"
        )
    return ABLATIONS[table]


def _varied(asked: AblateConfig) -> list[tuple[str, ...]]:
    """The fields of a grid, each with the values that it takes."""
    return [words for words in asked.set if len(words) > 2]


def _grid(asked: AblateConfig) -> Ablation:
    """A table of all combinations of the values given."""
    varied = _varied(asked)
    require_runs(math.prod(len(words) - 1 for words in varied), asked)
    names = [words[0].lstrip("-").replace("_", "-") for words in varied]
    short = [name.rpartition(".")[2] for name in names]
    shown = short if len(set(short)) == len(short) else names
    arms: dict[str, Arm] = {}
    for values in itertools.product(*(words[1:] for words in varied)):
        named = [f"{name} {value}" for name, value in zip(shown, values, strict=True)]
        key = slug("-".join(named))
        key = key if key not in arms else f"{key}-{len(arms)}"
        change = _combination(names, values)
        alone = len(varied) == 1
        arms[key] = Arm(key, values[0] if alone else ", ".join(named), change)
    axis = shown[0] if len(shown) == 1 else ""
    return Ablation(" x ".join(names), "", tuple(arms.values()), axis=axis)


def _combination(names: Sequence[str], values: Sequence[str]) -> Change:
    return lambda config: with_values(config, dict(zip(names, values, strict=True)))


def _rows(asked: AblateConfig, ablation: Ablation, base: PretrainConfig) -> list[Row]:
    """The rows, each once; the one that is the recipe itself has its key in every table."""
    rows: list[Row] = []
    for arm in ablation.arms:
        try:
            config = arm.change(base)
        except UserError as error:
            raise UserError(f"row '{arm.name}' of {asked.table}: {error}") from error
        own = arm._replace(key=BASE) if config == base else arm
        if all(row.config != config for row in rows):
            rows.append(Row(own, config))
    if asked.table == GRID and len(rows) == 1:
        raise UserError("the values that --set gives are one and the same: nothing to compare")
    return rows


def _baseline(asked: AblateConfig, ablation: Ablation, rows: Sequence[Row]) -> str:
    keys = [row.arm.key for row in rows]
    if asked.baseline is None:
        return ablation.baseline if ablation.baseline in keys else BASE
    own_key = {arm.name: arm.key for arm in ablation.arms}  # of a row that is the recipe, too
    for arm in (row.arm for row in rows):
        if asked.baseline in (arm.key, arm.name, own_key[arm.name]):
            return arm.key
    if asked.baseline == BASE:
        return BASE
    hint, names = nearest(asked.baseline, [*keys, *own_key]), [row.arm.name for row in rows]
    raise UserError(
        f"no row '{asked.baseline}'{hint} to compare with (there are: {'; '.join(names)})"
    )


def command_line(asked: AblateConfig, **other: Any) -> str:
    """The command line that gives this config, or one with other values."""
    return shlex.join(["mvmae", *words_of(replace(asked, **other))])


def words_of(asked: AblateConfig) -> list[str]:
    """The arguments that give this config."""
    words = ["ablate", asked.table, *asked.data]
    for field in fields(asked):
        value, flag = getattr(asked, field.name), f"--{field.name.replace('_', '-')}"
        if field.name in ("table", "data", "list") or value == field.default:
            continue
        if field.name == "set":
            words += [word for one in value for word in (flag, *one)]
        elif isinstance(value, bool):
            words.append(flag)
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words
