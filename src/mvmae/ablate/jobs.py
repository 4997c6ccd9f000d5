"""Share the cells of a table among several processes on one machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from mvmae import terminal
from mvmae.ablate import cells
from mvmae.ablate.plan import LOCKS, Plan
from mvmae.ablate.work import Inputs, Outcome
from mvmae.config.files import arguments

POLL_SECONDS = 1.0
STOP_SECONDS = 60.0  # time for a stopped process to save its state


def run_jobs(plan: Plan, inputs: Inputs) -> Outcome:
    """Start the processes, print the cells that they finish, and wait for all of them.

    Raises:
        KeyboardInterrupt: The command was stopped; so were the processes, with their states saved.
    """
    folder = plan.config.folder / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"job-{number}.log" for number in range(plan.config.jobs)]
    terminal.people().print(f"{len(logs)} processes; their output: {folder}/job-*.log")
    started = [_start(plan, number, log) for number, log in enumerate(logs)]
    try:
        _wait(plan, inputs, started)
    except KeyboardInterrupt:
        for process in started:
            process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()  # in case it hangs; its last checkpoint is complete
        raise
    failed = {}
    for log, process in zip(logs, started, strict=True):
        if process.returncode == 2:
            failed[log.stem] = _last_line(log).removeprefix("mvmae: ")
        elif process.returncode:
            raise RuntimeError(f"a process ended with status {process.returncode}: see {log}")
    return Outcome(0, failed, [])


def _start(plan: Plan, number: int, log: Path) -> subprocess.Popen[bytes]:
    """Start one process with its share of the cores and, if there are GPUs, one of them."""
    config = plan.config
    environment = os.environ | {"MVMAE_OUTPUT": "plain"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.jobs)))
    if count := torch.cuda.device_count() if config.device != "cpu" else 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % count]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "mvmae", "ablate", *arguments(replace(config, jobs=1))],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )


def _wait(plan: Plan, inputs: Inputs, started: list[subprocess.Popen[bytes]]) -> None:
    """Print each cell that is done, until all processes have ended."""
    config = plan.config
    every = [*plan.controls(), *plan.trained()]
    left = [cell for cell in every if not cells.is_done(cell, config, inputs.labelled_fingerprint)]
    while True:
        ended = all(process.poll() is not None for process in started)
        for cell in [
            cell for cell in left if cells.is_done(cell, config, inputs.labelled_fingerprint)
        ]:
            left.remove(cell)
            terminal.people().print(
                f"[{len(every) - len(left)}/{len(every)}] {cell.folder.name} is done"
            )
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else f"see {log}"
