"""The training loop of every command: resume, read, log, evaluate, save, stop.

    with Loop(config, plan, parts, batches, device, ...) as loop:
        for batch in loop:
            losses = training_step(...)
            if loop.record(losses):
                loop.write({"lr": lr} | loop.interval_means() | loop.interval_speed())

The command keeps its own `for` and its own step. Between two steps the loop saves a checkpoint
where one is due, and stops after SIGINT or SIGTERM with the state saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mvmae.errors import DivergedError, UserError
from mvmae.storage import run_folder
from mvmae.training import distributed
from mvmae.training.clock import Clock
from mvmae.training.interrupt import Interrupt, exit_status
from mvmae.training.log import Log
from mvmae.training.plan import Plan

MIN_ATTEMPTS = 100  # images read before the share of unreadable ones is trusted


@runtime_checkable  # the tests check types at run time
class TrainingOptions(Protocol):
    """What the loop reads of a command's config."""

    @property
    def log(self) -> Sequence[str]:
        """Other places for the metrics."""
        ...

    @property
    def log_every(self) -> int:
        """Steps between two lines of metrics."""
        ...

    @property
    def save_every_minutes(self) -> float:
        """Minutes between two checkpoints."""
        ...


@runtime_checkable
class ReadBatch(Protocol):
    """What the loop looks at in a batch."""

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """Path and reason of each image that was replaced by another."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether something readable was found for every place."""
        ...


@runtime_checkable
class Checkpoints(Protocol):
    """Where a run keeps its state."""

    @property
    def newest(self) -> Path:
        """The checkpoint that `save` writes."""
        ...

    def save(
        self,
        parts: Mapping[str, Any],
        plain: dict[str, Any],
        *,
        keep_as: str | None = None,
        in_background: bool = False,
    ) -> None:
        """Write the state dicts of the parts and plain values, in all processes together."""
        ...

    def load(self, parts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Restore the parts from the newest checkpoint; return the plain values."""
        ...

    def finish(self) -> None:
        """Wait for a checkpoint that is still being written; raise what went wrong."""
        ...


B = TypeVar("B", bound=ReadBatch)


class Loop(Generic[B]):
    """Yield the batches of the steps that are still to be taken.

    Args:
        config: The options of the command.
        plan: How long the run is.
        parts: Objects with a state dict (model, optimiser), by their names in the checkpoint.
        batches: From a range of steps to their batches.
        device: Of this process.
        checkpoints: Where the state is kept.
        folder: Run folder: metrics.jsonl, skipped.csv.
        title: The command, for the bar and for the hint how to resume.
        resume: Whether to continue from the newest checkpoint.
        counters: A dataclass of plain values that the command counts; part of the checkpoint.
        advice: What to do when the loss diverges, before and after the first update.
        resume_hint: How to continue after a signal. Default: the command with --resume.
        agree_every: Steps after which the processes agree on signals and checkpoints. Default: at
            lines of metrics.

    Raises:
        UserError: The checkpoint is damaged, or belongs to another run.
    """

    def __init__(
        self,
        config: TrainingOptions,
        plan: Plan,
        parts: Mapping[str, Any],
        batches: Callable[[range], Iterable[B]],
        device: torch.device,
        *,
        checkpoints: Checkpoints,
        folder: Path,
        title: str,
        resume: bool,
        advice: tuple[str, str],
        counters: Any = None,
        resume_hint: str | None = None,
        agree_every: int | None = None,
    ) -> None:
        self.config, self.plan, self.parts, self.device = config, plan, parts, device
        self.checkpoints, self.folder, self.counters = checkpoints, folder, counters
        self.advice = advice
        self.resume_hint = resume_hint or f"mvmae {title} --resume --out {folder}"
        self.agree_every = agree_every or config.log_every
        self.step = self.saved_step = self.signal = 0
        self._drawn = self._unreadable = 0
        self._pending: list[Tensor] = []  # a row of losses for each step since the last line
        self._names: tuple[str, ...] = ()
        self._skipped: list[tuple[str, str]] = []  # not yet in skipped.csv
        self._last_skipped = ("skipped.csv", "it lists them")
        if resume:
            self._restore()
        self._saved_at = time.monotonic()
        self._batches = batches(range(self.step, plan.total))
        quiet = not distributed.is_main()
        self.log = Log(
            folder, start=self.step, total=plan.total, also=config.log, quiet=quiet, title=title
        )
        self._clock, self._interrupt = Clock(), Interrupt()

    def __enter__(self) -> Loop[B]:
        self.log.__enter__()
        self._interrupt.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._interrupt.__exit__(*error)
        self.log.__exit__(*error)

    def __iter__(self) -> Iterator[B]:
        for batch in self._clock.timed(self._batches):
            self._count_reading(batch)
            yield batch
            if signal := self._agreed_signal():
                self.signal = signal
                self.save()
                self.log.say(self._farewell())
                return
            kept = self.plan.kept_as(self.step)
            if self.step < self.plan.total and (kept or self._is_save_due()):
                self.save(keep_as=kept, in_background=True)

    @property
    def status(self) -> int:
        """Exit status: 0, or 130 or 143 where a signal stopped the run."""
        return exit_status(self.signal) if self.signal else 0

    def record(self, losses: Mapping[str, Tensor]) -> bool:
        """Count a step and keep its losses, scalars on any device.

        Returns:
            Whether a line of metrics is due.
        """
        self._names = tuple(losses)
        self._pending.append(torch.stack(list(losses.values())).detach())
        self.step += 1
        self.log.advance(self.step)
        return self.step % self.config.log_every == 0 or self.step == self.plan.total

    def interval_means(self) -> dict[str, float]:
        """Mean losses since the last line of metrics, over all processes.

        Raises:
            DivergedError: A loss is not finite.
        """
        self.require_finite()
        means = torch.stack(self._pending).double().mean(dim=0)
        self._pending = []
        losses = distributed.mean_over_processes(means).tolist()
        return dict(zip(self._names, losses, strict=True))

    def interval_speed(self) -> dict[str, float]:
        """Images per second since the last call, and the share of time spent waiting for data."""
        return self._clock.lap(self.plan.batch_size)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line of metrics for the current step."""
        self.log.write({**self.plan.position(self.step), **record})

    def require_finite(self) -> None:
        """Stop at the first loss since the last line of metrics that is not finite.

        Raises:
            DivergedError: There is one.
        """
        if not self._pending:
            return
        values = torch.stack(self._pending)
        bad = (~values.isfinite()).any(dim=1).nonzero()  # waits for the GPU
        if not len(bad):
            return
        step = self.step - len(values) + int(bad[0]) + 1
        kept = (
            f"{self.checkpoints.newest}, saved at step {self.saved_step}, is from before it"
            if self.saved_step
            else "no checkpoint had been saved yet"
        )
        before_update, after_update = self.advice
        advice = after_update if step > 1 else f"before any update: {before_update}"
        raise DivergedError(f"the loss is not finite at step {step}: {advice}; {kept}", step)

    def save(self, *, keep_as: str | None = None, in_background: bool = False) -> None:
        """Save a checkpoint; all processes call this together.

        Args:
            keep_as: File name under which the checkpoint is also kept for good.
            in_background: Whether training may continue while a copy is written.

        Raises:
            DivergedError: A loss is not finite; the previous checkpoint stays.
        """
        self.checkpoints.finish()
        self.require_finite()
        rows = distributed.gather_objects(self._skipped)
        self._skipped = []
        if distributed.is_main():
            run_folder.append_skipped(self.folder, rows)
        plain = self._plain()
        self.checkpoints.save(self.parts, plain, keep_as=keep_as, in_background=in_background)
        self._saved_at, self.saved_step = time.monotonic(), self.step
        distributed.barrier()

    @property
    def unreadable(self) -> int:
        """Images that could not be read so far."""
        return self._unreadable

    def _plain(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "pending": self._pending,
            "drawn": self._drawn,
            "unreadable": self._unreadable,
        } | (vars(self.counters) if self.counters else {})

    def _restore(self) -> None:
        plain = self.checkpoints.load(self.parts, tuple(self._plain()))
        self.step = self.saved_step = plain["step"]
        self._pending = [row.to(self.device) for row in plain["pending"]]
        self._drawn, self._unreadable = plain["drawn"], plain["unreadable"]
        for name in vars(self.counters) if self.counters else ():
            setattr(self.counters, name, plain[name])

    def _count_reading(self, batch: B) -> None:
        """Count the images read, and those replaced because they cannot be read.

        Raises:
            UserError: More than half cannot be read.
        """
        self._skipped += batch.skipped
        self._last_skipped = batch.skipped[-1] if batch.skipped else self._last_skipped
        drawn = self.plan.batch_size // distributed.world_size()
        attempts = self._drawn + drawn + len(batch.skipped)
        failed = self._unreadable + len(batch.skipped)
        if batch.is_whole and not is_mostly_unreadable(failed, attempts):
            self._drawn, self._unreadable = attempts, failed
            return
        # The images may return: keep the steps taken. Only a single process can save alone.
        if distributed.world_size() == 1 and self.step > self.saved_step:
            self.save()
        run_folder.append_skipped(self.folder, self._skipped)
        raise unreadable_error(failed, attempts, self._last_skipped)

    def _is_save_due(self) -> bool:
        """Whether it is time for a checkpoint; asked only at steps where all processes agree."""
        if self.step % self.agree_every:
            return False
        late = time.monotonic() - self._saved_at >= 60 * self.config.save_every_minutes
        return bool(distributed.largest(int(late), self.device))

    def _agreed_signal(self) -> int:
        """The signal that any process received; several processes ask each other now and then."""
        if distributed.world_size() > 1 and self.step % self.agree_every:
            return 0
        return distributed.largest(self._interrupt.signal, self.device)

    def _farewell(self) -> str:
        name = {2: "SIGINT", 15: "SIGTERM"}.get(self.signal, f"signal {self.signal}")
        return f"stopped by {name} after step {self.step}, saved. Continue: {self.resume_hint}"


def is_mostly_unreadable(failed: int, attempts: int) -> bool:
    """Whether more than half of the attempts to read an image failed, once there are enough."""
    return attempts >= MIN_ATTEMPTS and failed > attempts / 2


def unreadable_error(failed: int, attempts: int, example: tuple[str, str]) -> UserError:
    """Error for data that mostly cannot be read; `example` is a path with its reason."""
    path, reason = example
    return UserError(
        f"{failed} of the first {attempts} attempts to read an image failed, for example "
        f"{path} ({reason}): is this the right DATA?"
    )
