"""Turn a table's name into the runs that it needs."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mvmae import recipes
from mvmae.ablate.tables import ABLATIONS, BASE, Ablation, Arm, keep
from mvmae.config import files
from mvmae.config.ablate import GRID, AblateConfig
from mvmae.config.files import from_json, read_json, to_plain
from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import UserError, suggest
from mvmae.storage.results import slug

LOCKS = ".locks"  # folder of the locks of cells, in the folder of the table
MAX_RUNS = 1000  # more are a mistake in --set or --seeds
SET_BY_ABLATE = {"data", "out", "seed", "eval_data", "resume", "overwrite", "device", "workers"}
PIXELS, COMPONENTS, UNTRAINED = "raw-pixels", "pca-pixels", "untrained"  # keys of the controls
SEEDLESS = (PIXELS, COMPONENTS)


class Cell(NamedTuple):
    """One row of the table with one seed, or a control that is evaluated but never trained."""

    key: str
    name: str
    seed: int
    folder: Path
    config: PretrainConfig | None
    """None for a control."""


class Row(NamedTuple):
    """A row of the table, for any seed."""

    arm: Arm
    config: PretrainConfig


class Plan(NamedTuple):
    """A table and its runs."""

    config: AblateConfig
    recipe: str
    """Name of the recipe."""

    recipe_config: PretrainConfig
    """The recipe with the fields fixed by --set, from which every row starts."""

    ablation: Ablation
    rows: tuple[Row, ...]
    baseline: str
    """Key of the row with which others are compared."""

    @property
    def name(self) -> str:
        """Name of the table and its files; a grid's lists its values, as grids share a folder."""
        if self.config.table != GRID:
            return self.config.table
        values = (part for words in _varied_fields(self.config) for part in words)
        return slug("-".join([GRID, *values]))

    @property
    def baseline_config(self) -> PretrainConfig:
        """The row with which others are compared."""
        return next(row.config for row in self.rows if row.arm.key == self.baseline)

    def training_cells(self) -> list[Cell]:
        """The cells to train: all rows of a seed before the next seed."""
        return [_cell(self.config, row, seed) for seed in self.config.seeds for row in self.rows]

    def cells(self) -> list[Cell]:
        """All cells in the order of work: controls first, because they take little time."""
        return [*self.controls(), *self.training_cells()]

    def controls(self) -> list[Cell]:
        """The cells that any encoder must beat: pixels, and the recipe's encoder untrained."""
        folder = self.config.folder
        pixels = Cell(PIXELS, "raw pixels", 0, folder / PIXELS, None)
        components = Cell(COMPONENTS, "PCA of pixels", 0, folder / COMPONENTS, None)
        return [pixels, components] + [
            Cell(UNTRAINED, "untrained encoder", seed, folder / f"{UNTRAINED}-{seed}", None)
            for seed in self.config.seeds
        ]


def _cell(config: AblateConfig, row: Row, seed: int) -> Cell:
    folder = config.folder / f"{row.arm.key}-{seed}"
    return Cell(row.arm.key, row.arm.name, seed, folder, replace(row.config, seed=seed, out=folder))


def make_plan(config: AblateConfig) -> Plan:
    """Plan the runs of a table.

    Raises:
        UserError: The table, recipe, field or baseline is unknown, or a row is invalid.
    """
    known = (*ABLATIONS, GRID)
    if config.table not in known:
        raise UserError(
            f"unknown table '{config.table}'{suggest(config.table, known)} "
            f"(tables: {', '.join(known)})"
        )
    ablation = _grid(config) if config.table == GRID else ABLATIONS[config.table]
    name, recipe = load_recipe(config)
    fixed = {words[0]: words[1] for words in config.set if len(words) == 2}
    recipe = with_values(recipe, fixed) if fixed else recipe
    recipe = replace(
        recipe,
        data=config.data,
        device=config.device,
        workers=config.workers,
        eval_data=None,
        seed=0,
        resume=False,
        overwrite=False,
    )
    rows = _rows(config, ablation, recipe)
    baseline = _baseline(config, ablation, rows)
    if baseline == BASE and all(row.arm.key != BASE for row in rows):
        rows.insert(0, Row(Arm(BASE, "as the recipe", keep), recipe))
    _require_few_runs(len(rows), config)
    return Plan(config, name, recipe, ablation, tuple(rows), baseline)


def _require_few_runs(rows: int, config: AblateConfig) -> None:
    if (count := rows * len(config.seeds)) > MAX_RUNS:
        raise UserError(
            f"{count} runs are more than {MAX_RUNS}: give fewer values to --set, or fewer --seeds"
        )


def load_recipe(config: AblateConfig) -> tuple[str, PretrainConfig]:
    """Load the recipe's name and config; the default is that of `pretrain`.

    Raises:
        UserError: The recipe is unknown, or the file is not a config of `pretrain`.
    """
    name = config.recipe
    if name is None and config.data == recipes.named("pretrain", "demo").data:
        name = "demo"
    elif name is None:
        name = "vit-small-128" if torch.cuda.is_available() else "tiny-cpu"
    if not name.endswith(".json"):
        return name, recipes.named("pretrain", name)
    content = read_json(name)
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{name} is not a config of mvmae pretrain: give a run's config.json")
    return name, from_json(json.dumps(content), PretrainConfig, source=name)


def with_values(config: PretrainConfig, words: Mapping[str, str]) -> PretrainConfig:
    """Set fields such as `model.mask-ratio` to values as written on the command line.

    They are set together, because one alone may not be compatible with the rest.

    Raises:
        UserError: A field is unknown or not for --set, or a value has the wrong type.
    """
    plain = to_plain(config)
    known = list(flatten(plain))
    for name, word in words.items():
        dotted = _field_name(name)
        if dotted not in known:
            hint = suggest(dotted, known).replace("_", "-")
            raise UserError(f"--set {name}: pretrain has no field of this name{hint}")
        if dotted in SET_BY_ABLATE:
            raise UserError(
                f"--set {name}: ablate sets {dotted.replace('_', '-')} for each run itself: use "
                "DATA, --out, --seeds, --eval-data, --device and --workers of ablate"
            )
        *groups, last = dotted.split(".")
        fields_of_group = plain
        for group in groups:
            fields_of_group = fields_of_group[group]
        fields_of_group[last] = _parse(word, like=fields_of_group[last])
    if "warmup_epochs" not in map(_field_name, words) and isinstance(plain["epochs"], int):
        plain["warmup_epochs"] = recipes.scale_warmup(config, plain["epochs"])
    try:
        return from_json(json.dumps(plain), PretrainConfig, source="it")
    except UserError as error:
        message = str(error)
        blamed = {
            name: word
            for name, word in words.items()
            if _field_name(name).rpartition(".")[2] in message
        }
        given = " ".join(f"--set {name} {word}" for name, word in (blamed or words).items())
        for pattern, simpler in SIMPLER:
            message = re.sub(pattern, simpler, message)
        raise UserError(f"{given}: {message}") from error


SIMPLER = (  # messages of the JSON reader, which name places in a file and Python's types
    (r" @ it[^;]*", ""),
    (
        r"a value is not Literal \((.*?) not in literal typing\.Literal\[(.*?)\]\)",
        r"\1 is not one of \2",
    ),
    (r"a value is not int \((.*?)\)", r"\1 is not a whole number"),
    (r"a value is not float \((.*?)\)", r"\1 is not a number"),
    (r"a value is not bool \((.*?)\)", r"\1 is neither true nor false"),
    (r"a value is not \S+ \(Not enough values.*?\]\)", "too few values: write a list as 0.2,1"),
    ("a value", "that"),
)


def _field_name(name: str) -> str:
    """The field's name in the code."""
    return name.lstrip("-").replace("-", "_")


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their dotted names, such as `model.mask_ratio` for one in a group."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        inner = flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {prefix + name: value} if inner is None else inner
    return flat


def _parse(word: str, *, like: Any = None) -> Any:
    """Parse a word as a JSON value; `0.2,1` becomes a list, and other text stays text.

    If the field's value is text, so is the word: `none` is a value of `model.head`, and `8` one of
    `views.depth`.
    """
    if isinstance(like, str):
        return word
    if isinstance(like, list) or "," in word:
        return [_parse(part) for part in word.split(",")]
    try:
        return None if word.lower() == "none" else json.loads(word.lower())
    except ValueError:
        return word


def _varied_fields(config: AblateConfig) -> list[tuple[str, ...]]:
    """Fields of a grid, each followed by its values."""
    return [words for words in config.set if len(words) > 2]


def _grid(config: AblateConfig) -> Ablation:
    """Build a table of all combinations of the values."""
    varied = _varied_fields(config)
    _require_few_runs(math.prod(len(words) - 1 for words in varied), config)
    names = [words[0].lstrip("-").replace("_", "-") for words in varied]
    short = [name.rpartition(".")[2] for name in names]
    shown = short if len(set(short)) == len(short) else names
    arms: dict[str, Arm] = {}
    for values in itertools.product(*(words[1:] for words in varied)):
        named = [f"{name} {value}" for name, value in zip(shown, values, strict=True)]
        key = slug("-".join(named))
        key = key if key not in arms else f"{key}-{len(arms)}"
        change = partial(with_values, words=dict(zip(names, values, strict=True)))
        arms[key] = Arm(key, values[0] if len(varied) == 1 else ", ".join(named), change)
    axis = shown[0] if len(shown) == 1 else ""
    return Ablation(" x ".join(names), "", tuple(arms.values()), axis=axis)


def _rows(config: AblateConfig, ablation: Ablation, base: PretrainConfig) -> list[Row]:
    """The distinct rows; one that equals the recipe has the key `base` in every table."""
    rows: list[Row] = []
    for arm in ablation.arms:
        try:
            changed = arm.change(base)
        except UserError as error:
            raise UserError(f"row '{arm.name}' of {config.table}: {error}") from error
        own = arm._replace(key=BASE) if changed == base else arm
        if all(row.config != changed for row in rows):
            rows.append(Row(own, changed))
    if config.table == GRID and len(rows) == 1:
        raise UserError(
            "all values of --set give the same config, so there is nothing to compare: give "
            "different values"
        )
    return rows


def _baseline(config: AblateConfig, ablation: Ablation, rows: Sequence[Row]) -> str:
    """Key of the row with which others are compared; --baseline may give its key or its name."""
    keys = [row.arm.key for row in rows]
    if config.baseline is None:
        return ablation.baseline if ablation.baseline in keys else BASE
    own_key = {arm.name: arm.key for arm in ablation.arms}  # also of a row renamed `base`
    for arm in (row.arm for row in rows):
        if config.baseline in (arm.key, arm.name, own_key[arm.name]):
            return arm.key
    if config.baseline == BASE:
        return BASE
    hint, names = suggest(config.baseline, [*keys, *own_key]), [row.arm.name for row in rows]
    raise UserError(f"--baseline: unknown row '{config.baseline}'{hint} (rows: {'; '.join(names)})")


def command_line(config: AblateConfig, **other: Any) -> str:
    """Return the command that has these options, some of them replaced."""
    return files.command_line("ablate", replace(config, **other))
