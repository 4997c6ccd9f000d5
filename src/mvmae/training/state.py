"""What a training run must remember to go on as if it had never stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor, nn

from mvmae.config.pretrain import PretrainConfig
from mvmae.errors import DivergedError, UserError
from mvmae.storage import run_folder
from mvmae.training import checkpoint, distributed
from mvmae.training import resume as resuming
from mvmae.training.sharding import training_tensors

PLAIN = ("step", "pending", "last_record", "warned", "drawn", "unreadable")
KEPT = ("model", "optimizer", *PLAIN)  # what a checkpoint holds
ENOUGH_TRIED = 100  # images after which the share of unreadable ones is believed


class State:
    """What a step changes besides the weights."""

    def __init__(self) -> None:
        self.step = 0
        self.pending: list[Tensor] = []  # losses since the last line of metrics
        self.last_record: dict[str, float] = {}
        self.warned = False  # of a collapse
        self.drawn = self.unreadable = 0
        self.skipped: list[tuple[str, str]] = []  # not yet in skipped.csv
        self.last_skipped = ("skipped.csv", "names them")  # path and reason
        self.saved_at, self.saved_step = time.monotonic(), 0
        self.saving: Future[None] | None = None  # a checkpoint on its way to the disk

    def is_worth_saving(self) -> bool:
        """Whether a run that ends because its images are gone has steps to keep: they may return.

        Of several processes only those without images would save, and saving needs them all.
        """
        return distributed.world_size() == 1 and self.step > self.saved_step

    def wait_for_saving(self) -> None:
        """Wait until the checkpoint on its way is on the disk, and raise what went wrong there."""
        saving, self.saving = self.saving, None
        try:
            if saving is not None:
                saving.result()
        finally:
            del saving  # which holds the error that would hold this frame

    def note_reading(
        self, drawn: int, skipped: Sequence[tuple[str, str]], *, is_whole: bool
    ) -> None:
        """Count images drawn and those among them that could not be read.

        Args:
            drawn: Images in the batch.
            skipped: Path and reason of each image that was passed over for another.
            is_whole: Whether something readable was found for every place.

        Raises:
            UserError: More than half cannot be read.
        """
        self.skipped += skipped
        self.last_skipped = skipped[-1] if skipped else self.last_skipped
        tried = self.drawn + drawn + len(skipped)
        failed = self.unreadable + len(skipped)
        if not is_whole or (tried >= ENOUGH_TRIED and failed > tried / 2):
            path, reason = self.last_skipped
            raise UserError(
                f"{failed} of the first {tried} attempts to read an image failed, "
                f"{path} for one ({reason}): is this the right DATA?"
            )
        self.drawn, self.unreadable = tried, failed  # of the steps that are taken

    def require_finite(self, config: PretrainConfig) -> None:
        """Stop at the first loss since the last line of metrics that is no number.

        Raises:
            DivergedError: There is one.
        """
        values = torch.stack(self.pending)  # a CPU-GPU synchronisation on CUDA
        bad = (~values.isfinite()).any(dim=1).nonzero()
        if not len(bad):
            return
        step = self.step - len(values) + int(bad[0]) + 1
        kept = (
            f"{resuming.place_of(config)}, of step {self.saved_step}, is from before it"
            if self.saved_step
            else "no checkpoint had been saved yet"
        )
        remedy = (
            "begin a new run with a lower --base-lr, or with --clip-grad 1"
            if step > 1
            else "before any update: look at --views.mean, --views.std and --objective.temperature"
        )
        raise DivergedError(f"the loss is not finite at step {step}: {remedy}; {kept}", step)


def save(
    state: State,
    config: PretrainConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    *,
    keep_as: str | None = None,
    in_background: bool = False,
) -> None:
    """Write a checkpoint, unless a loss since the last one is not finite.

    Args:
        state: Of the run.
        config: Of the run.
        model: The model.
        optimizer: Its optimiser.
        fingerprint: Of the images.
        keep_as: A file's name under which the checkpoint is also kept for good.
        in_background: Whether to go on while a copy is written; the next call waits for it.

    Raises:
        UserError: A loss is not finite; the checkpoint before stays.
    """
    state.wait_for_saving()
    if state.pending:
        state.require_finite(config)
    rows = distributed.gather_objects(state.skipped)
    state.skipped = []
    if distributed.is_main():
        run_folder.append_skipped(config.out, rows)
    if config.sharding == "full":
        tensors = training_tensors(model, optimizer)
        content = _plain(state) | {"pending": distributed.gather_objects([state.pending])}
        resuming.save_shares(config, fingerprint, tensors, content, keep_as=keep_as)
    elif distributed.is_main():
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()} | _plain(state)
        if in_background:
            copied = _copied(content)
            state.saving = _started(
                lambda: resuming.save(config, fingerprint, copied, keep_as=keep_as)
            )
        else:
            resuming.save(config, fingerprint, content, keep_as=keep_as)
    state.saved_at, state.saved_step = time.monotonic(), state.step
    distributed.barrier()


def _plain(state: State) -> dict[str, Any]:
    """What is kept beside the weights."""
    return {name: getattr(state, name) for name in PLAIN}


def _copied(value: Any) -> Any:
    """The same data in memory of its own on the CPU, which training no longer changes."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(content) for content in value)
    return value


def _started(write: Callable[[], None]) -> Future[None]:
    """Begin to write in a thread; the future has what it raised.

    The interpreter waits for a plain thread at its end, so the file is whole.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(write())
        except BaseException as error:
            # Without what would hold the frames, and with them the future: tensors in such a ring
            # crash torch when the program ends.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint").start()
    return future


def resume(
    config: PretrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str
) -> State:
    """Take up the run in the folder where it was saved.

    Raises:
        UserError: The checkpoint is damaged, or of another model, config or data.
    """
    if config.sharding == "full":
        tensors = training_tensors(model, optimizer)
        saved = resuming.load_shares(config, fingerprint, PLAIN, tensors)
        saved["pending"] = _own_pending(saved["pending"])
    else:
        saved = resuming.load(config, fingerprint, KEPT)
        checkpoint.load_weights(model, saved["model"], source=str(resuming.file_of(config.out)))
        optimizer.load_state_dict(saved["optimizer"])
    device = next(model.parameters()).device
    state = State()
    state.step = state.saved_step = saved["step"]
    state.pending = [row.to(device) for row in saved["pending"]]
    state.last_record, state.warned = saved["last_record"], saved["warned"]
    state.drawn, state.unreadable = saved["drawn"], saved["unreadable"]
    return state


def _own_pending(of_all: list[list[Tensor]]) -> list[Tensor]:
    """This process's losses; where as many processes do not go on, the mean of those that ran."""
    if len(of_all) == distributed.world_size():
        return of_all[distributed.rank()]
    return [torch.stack(step).mean(dim=0) for step in zip(*of_all, strict=True)]


def is_due(state: State, config: PretrainConfig, device: torch.device) -> bool:
    """Whether it is time for a checkpoint; asked between lines of metrics, and all agree."""
    if state.step % config.log_every:
        return False
    late = time.monotonic() - state.saved_at >= 60 * config.save_every_minutes
    return bool(distributed.largest(int(late), device))
