"""Trained models of `detect` and `segment`: saved, opened again, and applied by --predict.

A model is model.safetensors with its model.json.
"""

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from mvmae import recipes, terminal
from mvmae.config.files import from_json
from mvmae.data.reading.decode import EXTENSIONS
from mvmae.data.sources.base import Source
from mvmae.data.sources.folders import Files
from mvmae.data.sources.open import open_source
from mvmae.encoders import OpenedEncoder
from mvmae.encoders.encoder_json import encoder_from_metadata
from mvmae.errors import UserError
from mvmae.storage import run_folder
from mvmae.training import checkpoint, distributed, precision

FILE = "model.safetensors"
FORMAT = 1  # version of model.json
RUN_COMMANDS = ("pretrain", "finetune", "segment", "detect")  # that leave a run folder
UNFINISHED = ".unfinished"  # inside an output folder that exists already
MAX_NAME_BYTES = 200  # file systems allow 255, and suffixes are added

T = TypeVar("T")


class Predictor(NamedTuple):
    """Model, during or after its training, with the settings for applying it to whole images."""

    model: nn.Module
    opened: OpenedEncoder
    """Patch size and preprocessing of the images."""

    config: Any
    """`DetectConfig` or `SegmentConfig`."""

    device: torch.device


def save_model(folder: Path, command: str, facts: Mapping[str, Any], model: nn.Module) -> None:
    """Write model.safetensors and model.json into a run folder."""
    metadata = {"format": FORMAT, "task": command, **facts}
    checkpoint.save_tensors(folder / FILE, model.state_dict(), metadata)


def open_model(
    source: str, command: str, noun: str, build: Callable[[Mapping[str, Any], OpenedEncoder], T]
) -> T:
    """Open a trained model for inference.

    Args:
        source: Finished run folder, or its model.safetensors.
        command: Command that trained it.
        noun: Kind of model, for error messages.
        build: Function that returns an object with the `model`, without its weights, from the facts
            in model.json and the encoder.

    Raises:
        UserError: The run has not finished, is of another command, or its files are damaged.
    """
    path = Path(source)
    run_folder.require_format(path)
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        hint, trained_by = "", command_of_run(path)
        if trained_by == command:
            hint = " (the run has not finished: continue it with --resume)"
        elif trained_by:
            hint = f" (it is a run of mvmae {trained_by})"
        raise UserError(
            f"{source} is not a finished run of mvmae {command}: {file} does not exist{hint}"
        )
    tensors, facts = checkpoint.load_tensors(file)
    if facts.get("task") != command:
        raise UserError(f"{file} is not a {noun}: its .json does not describe one")
    try:
        opened: Any = build(facts, encoder_from_metadata(facts["encoder"], source=str(file)))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: its .json does not describe a {noun}: {error!r}") from error
    checkpoint.load_weights(opened.model, tensors, source=str(file))
    opened.model.eval()
    return opened


def command_of_run(folder: Path) -> str:
    """Return the command whose run is in a folder, or an empty string if it is not known."""
    file = folder / run_folder.CONFIG
    with suppress(OSError, UnicodeDecodeError):
        text = file.read_text(encoding="utf-8")
        # config.json does not name its command, but each command rejects the others' options.
        for command in RUN_COMMANDS:
            kind = type(next(iter(recipes.load_recipes(command).values())).config)
            with suppress(UserError):
                from_json(text, kind, source=str(file))
                return command
    return ""


def saved_predictor(saved: Any, command: str, config: Any, device: torch.device) -> Predictor:
    """Apply a saved model with the settings that training has fixed, and the others of `config`.

    Other values of fixed settings are rejected, since they would be silently ignored. Values that a
    recipe sets are accepted, since the user did not ask for them.

    Args:
        saved: Result of `open_model`: `model`, `opened`, and `fixed_settings`, the trained model's
            values by field of the config.
        command: Command whose recipes count.
        config: Options of the command.
        device: Device to compute on.

    Raises:
        UserError: A field differs from the trained model's value, the default and every recipe.
    """
    defaults = {field.name: field.default for field in fields(config)}
    for name, trained in saved.fixed_settings.items():
        value = getattr(config, name)
        recipe_values = [
            getattr(one.config, name) for one in recipes.load_recipes(command).values()
        ]
        if value not in (trained, defaults[name], *recipe_values):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {value} has no effect on a trained model, which uses {trained}: "
                f"leave {flag} out"
            )
    config = replace(config, **saved.fixed_settings)
    return Predictor(saved.model.to(device), saved.opened, config, device)


class Prediction(NamedTuple):
    """What one use of --predict works with."""

    folder: Path
    """Folder to write into; its content then moves to `out`."""

    out: Path
    saved: Any
    """The trained model and its facts."""

    predictor: Predictor
    source: Source


def predict(
    command: str,
    config: Any,
    out: Path,
    owned: Mapping[str, str],
    open_saved: Callable[[str], Any],
    predict_all: Callable[[Prediction], tuple[Sequence[tuple[str, str]], str, str, dict[str, Any]]],
) -> None:
    """Apply a finished run to the images `config.predict`, and print what was found.

    Args:
        command: `detect` or `segment`.
        config: Its options.
        out: Output folder.
        owned: Names that predictions consist of, see `require_replaceable`.
        open_saved: Opens the finished run `config.encoder`.
        predict_all: Writes the predictions of all images. It returns path and reason of each image
            that cannot be read, a sentence about what was found, the paths of the files in words,
            and further content of the JSON line.

    Raises:
        UserError: The run or the images cannot be opened, or the output folder holds something.
    """
    require_single_process("--predict")
    began, device = time.perf_counter(), precision.choose_device(config.device)
    # Whatever may be refused is checked before the first image, and leaves everything as it was.
    require_replaceable(out, owned, overwrite=config.overwrite)
    saved = open_saved(config.encoder)
    predictor = saved_predictor(saved, command, config, device)
    source = open_images(str(config.predict), saved.opened.encoder.in_channels)
    num_images, target = len(source), out.resolve()
    if any(Path(source.path(at)).resolve().is_relative_to(target) for at in range(num_images)):
        raise UserError(  # --overwrite would delete them
            f"the images are in {out}, where the predictions would go: choose another --out"
        )
    with write_aside(out, owned) as folder:
        task = Prediction(folder, out, saved, predictor, source)
        skipped, findings, written, facts = predict_all(task)
        if len(skipped) == num_images:
            path, reason = skipped[0]
            raise UserError(
                f"none of the images in {source.name} can be read, for example {path} ({reason})"
            )
        run_folder.append_skipped(folder, skipped)
    console = terminal.console()
    counts = {"images": num_images - len(skipped), "skipped": len(skipped)}
    seconds = time.perf_counter() - began
    console.print(f"{counts['images']} images in {seconds:.0f} s; {findings}")
    if skipped:
        console.print(f"{len(skipped)} images could not be read: {out / 'skipped.csv'}")
    console.print(f"written: {written}")
    terminal.emit("result", {"command": command} | counts | facts)


def require_single_process(option: str) -> None:
    """Reject an option under torchrun, where every process would repeat the work.

    Raises:
        UserError: Several processes were started.
    """
    if distributed.announced_world_size() > 1:
        raise UserError(f"{option} runs in one process: start it without torchrun")


def open_images(name: str, channels: int) -> Source:
    """Open the images of a folder or a list, or one image file.

    Raises:
        UserError: Nothing is there, or it cannot be read.
    """
    path = Path(name)
    if path.suffix.lower() not in EXTENSIONS or path.is_dir():
        return open_source((name,), channels)
    if not path.exists():
        raise UserError(f"no such image: {name}")
    return Files(name, [name], channels)


def require_replaceable(out: Path, owned: Mapping[str, str], *, overwrite: bool) -> None:
    """Require that a folder is new or empty, or holds predictions that may be replaced.

    Args:
        out: Output folder.
        owned: What predictions consist of: names in the folder, with the suffix of the files below
            those that are folders. Every set of predictions has the first name.
        overwrite: Whether existing predictions may be replaced.

    Raises:
        UserError: The folder is a file, holds other files, or holds predictions to be kept.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out must name a folder")
    present = {path.name for path in out.iterdir()} - {UNFINISHED} if out.exists() else set()
    if not present:
        return
    # Also below pictures/ or masks/: a folder of that name may hold anything.
    foreign = sorted(present - owned.keys()) or sorted(
        str(path.relative_to(out))
        for name, suffix in owned.items()
        for path in (out / name).rglob("*")
        if path.is_file() and path.suffix != suffix
    )
    if foreign or next(iter(owned)) not in present:
        example = foreign[0] if foreign else next(iter(present))
        raise UserError(
            f"{out} holds other files ({example}): choose an --out that is new or empty"
        )
    if not overwrite:
        raise UserError(
            f"{out} already holds predictions: choose another --out, or --overwrite to replace them"
        )


def prediction_names(source: Source) -> list[str]:
    """Return a unique name for each image: its path below the images' common folder.

    The suffix is dropped unless two names would then be equal.
    """
    # `resolve` would follow links, to names that the user does not know.
    paths = [Path(os.path.abspath(source.path(index))) for index in range(len(source))]  # noqa: PTH100
    base = Path(os.path.commonpath([path.parent for path in paths]))
    relative = [path.relative_to(base) for path in paths]
    stems = Counter(path.with_suffix("") for path in relative)
    names = [
        path.with_suffix("") if stems[path.with_suffix("")] == 1 else path for path in relative
    ]
    if len(set(names)) < len(names):  # x.jpg beside x.png and x.jpg.tif
        names = relative
    return [str(_shorten(name)) for name in names]


def _shorten(path: Path) -> Path:
    """Replace the end of a long name by its hash, to leave room for a suffix."""
    name = path.name.encode(errors="surrogateescape")
    if len(name) <= MAX_NAME_BYTES:
        return path
    kept = name[: MAX_NAME_BYTES - 20].decode(errors="ignore")
    return path.with_name(f"{kept}-{hashlib.blake2b(name, digest_size=8).hexdigest()}")


@contextmanager
def write_aside(out: Path, owned: Mapping[str, str]) -> Iterator[Path]:
    """Yield a folder to write into; on success its content replaces the predictions in `out`.

    An existing output folder stays the same folder and keeps what is not listed in `owned`, since
    it may be a link or a mounted disk.

    Raises:
        UserError: A folder cannot be made.
    """
    target = out.resolve()
    exists = target.is_dir()
    # Inside or beside the target, and so on the same disk, where renaming needs no copy.
    folder = target / UNFINISHED if exists else target.with_name(f".{target.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    run_folder.make(folder)
    try:
        yield folder
        if not exists:
            folder.rename(target)
            return
        for name in owned:
            run_folder.remove(target / name)
        for path in folder.iterdir():
            path.rename(target / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
