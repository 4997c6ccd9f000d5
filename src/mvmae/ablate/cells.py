"""Train and evaluate one cell of an ablation table; each cell is a run folder.

A control is a cell without pre-training: an untrained encoder, pixels or their components.
"""

import json
import os
import shutil
import time
from dataclasses import replace
from typing import Any, Literal

import torch

from mvmae import encoders, terminal
from mvmae.ablate.plan import COMPONENTS, SEEDLESS, UNTRAINED, Cell, Plan
from mvmae.config.ablate import AblateConfig
from mvmae.config.evaluation import KnnConfig, ProbeConfig
from mvmae.config.files import from_json, to_plain
from mvmae.config.pretrain import PretrainConfig
from mvmae.data.sources.base import plain_channels, stamp
from mvmae.data.sources.labelled import Labelled
from mvmae.data.sources.open import open_source
from mvmae.encoders import ENCODER_FILE, OpenedEncoder
from mvmae.errors import UserError
from mvmae.evaluation import knn, probe, probe_mae, shared
from mvmae.evaluation.shared import Candidate, Setting
from mvmae.method import pretrain
from mvmae.method.preflight.resolve_config import fill_from_run, resolve_config
from mvmae.storage import atomic, results, run_folder
from mvmae.terminal import Bar
from mvmae.training import precision, run_checkpoints

Progress = Literal["new", "begun", "trained"]
EvaluationConfig = KnnConfig | ProbeConfig
TITLES = {"knn": "kNN", "probe": "linear"}  # names of the accuracies by command
NUM_COMPONENTS = 64  # principal components of pixels, a baseline without an encoder


def training_progress(cell: Cell, fingerprint: str | None = None) -> Progress:
    """Return how far the training of a cell is; a control needs none, so it counts as trained.

    Args:
        cell: The cell.
        fingerprint: Fingerprint of the training images. None: accept any images.

    Raises:
        UserError: Its folder holds a run with other settings or images, or other files.
    """
    folder, config = cell.folder, cell.config
    if config is None:
        return "trained"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, but {cell.name} needs a folder: choose another --out")
    if not run_folder.is_run(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        names = {name for name in names if not name.startswith(run_folder.LOCK)}
        # A run killed at its start leaves .NAME.tmp, the temporary file of NAME.
        if {name.removeprefix(".").removesuffix(".tmp") for name in names} - {*run_folder.OURS}:
            raise UserError(f"{folder} holds other files: choose an --out that is new or empty")
        return "new"
    before = from_json(
        (folder / run_folder.CONFIG).read_text(encoding="utf-8"),
        PretrainConfig,
        source=str(folder / run_folder.CONFIG),
    )
    if changed := run_checkpoints.differences(before, fill_from_run(config, before)):
        raise UserError(
            f"{folder} was run with {changed}: repeat those settings, or choose another --out for "
            "the new ones"
        )
    known = atomic.read_object(cell.folder / "environment.json").get("data_fingerprint")
    if fingerprint is not None and known not in (None, fingerprint):
        raise UserError(
            f"the images in {' '.join(config.data)} are not those that {folder} was trained on: "
            "put them back, or choose another --out"
        )
    is_complete = (folder / ENCODER_FILE).exists() and (folder / "health.json").exists()
    return "trained" if is_complete else "begun"


def train(cell: Cell) -> int:
    """Begin or resume the training of a cell.

    Returns:
        The exit status of `pretrain`; 0 if there is nothing to train.

    Raises:
        UserError: As `training_progress` and `pretrain`.
    """
    progress = training_progress(cell)
    if cell.config is None or progress == "trained":
        return 0
    if progress == "new":
        shutil.rmtree(cell.folder, ignore_errors=True)  # left by a run killed at its start
        return pretrain.run(cell.config)
    is_saved = run_checkpoints.has_checkpoint(cell.folder)
    return pretrain.run(replace(cell.config, resume=is_saved, overwrite=not is_saved))


def evaluation_configs(cell: Cell, config: AblateConfig) -> list[EvaluationConfig]:
    """Return the options of each evaluation of a cell: `mvmae knn`, and `mvmae probe` if asked for.

    Pixels are not evaluated by MAE's probe, which trains on an encoder's tokens.
    """
    common: dict[str, Any] = {
        "encoder": str(cell.folder),
        "data": config.eval_source,
        "baselines": False,
        "seed": cell.seed,
        "device": config.device,
        "workers": config.workers,
    }
    configs: list[EvaluationConfig] = [KnnConfig(**common, out=cell.folder)]
    if config.probe == "cached" or (config.probe == "mae" and cell.key not in SEEDLESS):
        configs.append(ProbeConfig(**common, out=cell.folder, protocol=config.probe))
    return configs


def command_name(config: EvaluationConfig) -> str:
    """Return the name of the command that has these options."""
    return "knn" if isinstance(config, KnnConfig) else "probe"


def find_result(
    cell: Cell, config: EvaluationConfig, images: str | None = None
) -> dict[str, Any] | None:
    """Find the result of an evaluation, if it was made on these images.

    Args:
        cell: The evaluated cell.
        config: Options of the evaluation.
        images: Fingerprint of the labelled images. None: accept any images.
    """
    wanted = _deciding_options(to_plain(config))
    for file in sorted((cell.folder / "results").glob(f"{command_name(config)}-*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            is_same = _deciding_options(result["config"]) == wanted
            has_images = images in (None, result["data"]["fingerprint"])
            if is_same and has_images and isinstance(result["headline"]["top1"], float | int):
                return result
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a damaged file counts as missing, and is evaluated again
    return None


def _deciding_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options that decide a cell's result; the path of its folder does not."""
    idle = results.IDLE | {"encoder", "data"}
    rest = {name: value for name, value in config.items() if name not in idle}
    return rest | {"data": os.path.normpath(config["data"])}


def is_done(cell: Cell, config: AblateConfig, images: str | None = None) -> bool:
    """Whether a cell is trained, and evaluated on these images (None: on any)."""
    return training_progress(cell) == "trained" and all(
        find_result(cell, one, images) for one in evaluation_configs(cell, config)
    )


def find_unfinished(plan: Plan, images: str) -> list[Cell]:
    """Cells that are not trained and evaluated on these images, in the order of work."""
    return [cell for cell in plan.cells() if not is_done(cell, plan.config, images)]


def evaluate(cell: Cell, plan: Plan, data: Labelled, images: str) -> int:
    """Run the evaluations of a cell that have no result yet.

    Args:
        cell: A trained cell, or a control.
        plan: All cells of the table and their options.
        data: The labelled images; read directly for raw pixels.
        images: Fingerprint of the labelled images.

    Returns:
        0; 130 or 143 if MAE's probe was stopped by SIGINT or SIGTERM, with its state saved.
    """
    missing = [
        config
        for config in evaluation_configs(cell, plan.config)
        if not find_result(cell, config, images)
    ]
    run_folder.make(cell.folder)
    if missing and cell.key == UNTRAINED and not (cell.folder / ENCODER_FILE).exists():
        encoders.save_encoder(cell.folder, _untrained_encoder(cell, plan))
    on_features = [one for one in missing if getattr(one, "protocol", "cached") == "cached"]
    if on_features:
        _evaluate_features(cell, plan, data, on_features)
    for config in missing:
        if isinstance(config, ProbeConfig) and config not in on_features:
            return probe_mae.run(config)
    return 0


def _untrained_encoder(cell: Cell, plan: Plan) -> OpenedEncoder:
    """Return the recipe's encoder before training, with the preprocessing of training."""
    config = replace(plan.recipe_config, seed=cell.seed, out=cell.folder)
    source = open_source(config.data, plain_channels(config.model.in_channels))
    config, _, _ = resolve_config(config, source)
    like = encoders.random_encoder(config.model, cell.seed)
    return encoders.attach_preprocessing(encoders.untrained_copy(like, cell.seed), config)


def _evaluate_features(
    cell: Cell, plan: Plan, data: Labelled, configs: list[EvaluationConfig]
) -> None:
    """Score features as `knn` and `probe` do, and write their results without printing them.

    An encoder's features are computed once for all methods. Pixels are read again for each method,
    because each shrinks images to a different size.
    """
    methods = [
        knn.knn_method(config) if isinstance(config, KnnConfig) else probe.probe_method(config)
        for config in configs
    ]
    first, on_pixels = configs[0], cell.key in SEEDLESS
    setting = _pixel_setting(cell, plan, data) if on_pixels else shared.open_setting(first)
    num_images = len(setting.data.train) + len(setting.data.test)
    with Bar(num_images * (len(methods) if on_pixels else 1)) as bar:
        bar.name(cell.name)
        found = (
            [shared.pixel_candidate(setting, one.pixel_side, first.workers, bar) for one in methods]
            if on_pixels
            else [shared.encoder_candidate(first, setting, str(cell.folder), setting.opened, bar)]
            * len(methods)
        )
    for config, method, candidate in zip(configs, methods, found, strict=True):
        assert candidate is not None  # None only in processes other than the main one
        if cell.key == COMPONENTS:
            candidate = _principal_components(candidate, NUM_COMPONENTS)
        rows, headline = shared.score_candidates([candidate], method, setting)
        assert headline is not None
        with terminal.output({"quiet"}):
            shared.report(config, setting, rows, headline, command=method.command, title="")


def _pixel_setting(cell: Cell, plan: Plan, data: Labelled) -> Setting:
    """Return the setting for evaluating pixels.

    A setting needs an encoder, so it gets a random one. That gives the number of channels and the
    token's name, and is never run.
    """
    config = plan.recipe_config
    opened = encoders.attach_preprocessing(encoders.random_encoder(config.model, 0), config)
    device = precision.choose_device(plan.config.device)
    stamps = {"train": stamp(data.train), "test": stamp(data.test)}
    return Setting(opened, data, "mean", cell.folder, device, time.perf_counter(), stamps, [])


def _principal_components(candidate: Candidate, count: int) -> Candidate:
    """Project vectors on the first `count` principal components of the training vectors."""
    from sklearn.decomposition import PCA  # takes half a second, and few commands need it

    train, test = candidate.train, candidate.test
    count = min(count, *train.mean.shape)
    # Both solvers are exact. The cost of covariance_eigh depends on the width alone, which is
    # seconds for pixels.
    many = len(train.mean) > train.mean.shape[1]
    solver: Any = "covariance_eigh" if many else "full"
    pca = PCA(count, svd_solver=solver).fit(train.mean.numpy())
    train, test = (
        part._replace(mean=torch.from_numpy(pca.transform(part.mean.numpy())).float())
        for part in (train, test)
    )
    return Candidate(f"{candidate.name}, {count} principal components", train, test)
