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

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mvmae.config.options import RunOutput
from mvmae.errors import DivergedError, UserError
from mvmae.storage import run_folder
from mvmae.training import distributed
from mvmae.training.interrupt import Interrupt, exit_status
from mvmae.training.log import Log
from mvmae.training.plan import Plan
from mvmae.training.run_checkpoints import RunCheckpoints

MIN_ATTEMPTS = 100  # reads before a run stops because most of them failed


@runtime_checkable  # the tests check types at run time
class ReadBatch(Protocol):
    """Fields of a batch that the loop reads."""

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """Path and reason of each unreadable image, which another one replaces."""

    @property
    def is_whole(self) -> bool:
        """Whether a readable image was found for every row."""


B = TypeVar("B", bound=ReadBatch)


@dataclass(eq=False)
class Loop(Generic[B]):
    """Yield the batches of the remaining steps.

    Raises:
        UserError: The checkpoint is damaged, or belongs to another run.
    """

    config: RunOutput
    """Intervals of metrics and checkpoints, and additional logs."""

    plan: Plan
    """Number of steps, and when to evaluate and keep checkpoints."""

    parts: Mapping[str, Any]
    """Objects with a state dict (model, optimiser), by their names in the checkpoint."""

    batches: Callable[[range], Iterable[B]]
    """Returns the batches of a range of steps."""

    device: torch.device
    """Device of this process."""

    _: KW_ONLY
    checkpoints: RunCheckpoints
    """Where the state is kept."""

    folder: Path
    """Run folder: metrics.jsonl, skipped.csv."""

    title: str
    """Name of the command, for the progress bar and the hint how to resume."""

    resume: bool
    """Whether to continue from the newest checkpoint."""

    advice: tuple[str, str]
    """What to do when the loss diverges, before and after the first update."""

    counters: Any = None
    """Further state of the command, a dataclass of plain values; part of the checkpoint."""

    resume_hint: str = ""
    """How to continue after a signal. Default: the command with --resume."""

    agree_every: int = 0
    """Steps between two agreements of the processes on signals and checkpoints. Default: those
    between two lines of metrics."""

    def __post_init__(self) -> None:
        self.resume_hint = self.resume_hint or f"mvmae {self.title} --resume --out {self.folder}"
        self.agree_every = self.agree_every or self.config.log_every
        self.step = self.saved_step = self.signal = 0
        self.unreadable = self._drawn = 0  # reads of this process: failed ones, and all
        self._pending: list[Tensor] = []  # losses of each step since the last line of metrics
        self._names: tuple[str, ...] = ()
        self._skipped: list[tuple[str, str]] = []  # not yet in skipped.csv
        self._last_skipped = ("skipped.csv", "it lists them")
        if self.resume:
            self._restore()
        self._saved_at = time.monotonic()
        self._batches = iter(self.batches(range(self.step, self.plan.total)))
        self.log = Log(
            self.folder,
            start=self.step,
            total=self.plan.total,
            also=self.config.log,
            quiet=not distributed.is_main(),
            title=self.title,
        )
        self._interrupt = Interrupt()
        self._lap = time.perf_counter(), self.step  # when the speed was last measured
        self._waited = 0.0  # seconds since then

    def __enter__(self) -> Loop[B]:
        self.log.__enter__()
        self._interrupt.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._interrupt.__exit__(*error)
        self.log.__exit__(*error)

    def __iter__(self) -> Iterator[B]:
        while (batch := self._next_batch()) is not None:
            yield batch
            # The processes must save and stop at the same step. Agreeing on it is a collective
            # operation, so they do it only every few steps.
            agree = self.step % self.agree_every == 0
            if agree or distributed.world_size() == 1:
                self.signal = distributed.max_over_processes(self._interrupt.signal, self.device)
            if self.signal:
                self.save()
                name = signal.Signals(self.signal).name
                self.log.say(
                    f"stopped by {name} after step {self.step}, saved. Continue: {self.resume_hint}"
                )
                return
            kept = self.plan.name_to_keep(self.step)
            late = time.monotonic() - self._saved_at >= 60 * self.config.save_every_minutes
            is_due = agree and distributed.max_over_processes(int(late), self.device)
            if self.step < self.plan.total and (kept or is_due):
                self.save(keep_as=kept, in_background=True)

    def _next_batch(self) -> B | None:
        """Read the next batch; None at the end of the run.

        Raises:
            UserError: More than half of the images cannot be read.
        """
        start = time.perf_counter()
        batch = next(self._batches, None)
        if batch is None:
            return None
        self._waited += time.perf_counter() - start
        self._skipped += batch.skipped
        self._last_skipped = batch.skipped[-1] if batch.skipped else self._last_skipped
        drawn = self.plan.batch_size // distributed.world_size()
        attempts = self._drawn + drawn + len(batch.skipped)
        failed = self.unreadable + len(batch.skipped)
        if not batch.is_whole or is_mostly_unreadable(failed, attempts):
            # The images may return, for example a lost network disk, so save the steps taken. With
            # several processes this one cannot: saving needs all, and the others are not here.
            if distributed.world_size() == 1 and self.step > self.saved_step:
                self.save()
            run_folder.append_skipped(self.folder, self._skipped)
            raise unreadable_error(failed, attempts, self._last_skipped)
        self._drawn, self.unreadable = attempts, failed
        return batch

    @property
    def status(self) -> int:
        """Exit status: 0, or 130 or 143 if a signal stopped the run."""
        return exit_status(self.signal)

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
        """Return mean losses since the last line of metrics, over all processes.

        Raises:
            DivergedError: A loss is not finite.
        """
        self.require_finite()
        means = torch.stack(self._pending).double().mean(dim=0)
        self._pending = []
        losses = distributed.mean_over_processes(means).tolist()
        return dict(zip(self._names, losses, strict=True))

    def interval_speed(self) -> dict[str, float]:
        """Return images per second since the last call, and the share of time waiting for data."""
        now, (start, first_step) = time.perf_counter(), self._lap
        passed = max(now - start, 1e-9)
        images = (self.step - first_step) * self.plan.batch_size
        speed = {
            "images_per_second": round(images / passed, 2),
            "data_wait": round(self._waited / passed, 4),
        }
        self._lap, self._waited = (now, self.step), 0.0
        return speed

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line of metrics for the current step."""
        self.log.write({**self.plan.position(self.step), **record})

    def require_finite(self) -> None:
        """Require that all losses since the last line of metrics are finite.

        Raises:
            DivergedError: One is not; the error names the first step.
        """
        if not self._pending:
            return
        values = torch.stack(self._pending)
        bad = (~values.isfinite()).any(dim=1).nonzero()  # waits for the GPU
        if not len(bad):
            return
        step = self.step - len(values) + int(bad[0]) + 1
        kept = (
            f"{self.checkpoints.newest} was saved before it, at step {self.saved_step}"
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
        self.require_finite()  # or the only good checkpoints would be replaced by diverged ones
        rows = distributed.gather_objects(self._skipped)
        self._skipped = []
        if distributed.is_main():
            run_folder.append_skipped(self.folder, rows)
        plain = self._plain_state()
        self.checkpoints.save(self.parts, plain, keep_as=keep_as, in_background=in_background)
        self._saved_at, self.saved_step = time.monotonic(), self.step
        distributed.barrier()

    def _plain_state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "pending": self._pending,
            "drawn": self._drawn,
            "unreadable": self.unreadable,
        } | (vars(self.counters) if self.counters else {})

    def _restore(self) -> None:
        plain = self.checkpoints.load(self.parts, tuple(self._plain_state()))
        self.step = self.saved_step = plain["step"]
        self._pending = [row.to(self.device) for row in plain["pending"]]
        self._drawn, self.unreadable = plain["drawn"], plain["unreadable"]
        for name in vars(self.counters) if self.counters else ():
            setattr(self.counters, name, plain[name])


def is_mostly_unreadable(failed: int, attempts: int) -> bool:
    """Whether more than half of at least `MIN_ATTEMPTS` attempts to read an image failed."""
    return attempts >= MIN_ATTEMPTS and failed > attempts / 2


def unreadable_error(failed: int, attempts: int, example: tuple[str, str]) -> UserError:
    """Build the error for data that mostly cannot be read; `example` is a path and a reason."""
    path, reason = example
    return UserError(
        f"{failed} of the first {attempts} attempts to read an image failed, for example "
        f"{path} ({reason}): is this the right DATA?"
    )
