"""Several processes on one machine that share the cells of a table."""

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
from mvmae.ablate.locks import FOLDER
from mvmae.ablate.plan import Plan, words_of
from mvmae.ablate.work import Outcome, Ready

LOOK = 1.0  # seconds between two looks at what is done
PATIENCE = 60.0  # seconds in which a stopped process saves its state


def share(plan: Plan, known: Ready) -> Outcome:
    """Start the processes, say what they finish, and wait for all.

    Raises:
        UserError: One of them did.
    """
    place = plan.asked.folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    logs = [place / f"job-{number}.log" for number in range(plan.asked.jobs)]
    terminal.people().print(f"{len(logs)} processes; what they say: {place}/job-*.log")
    started = [_start(plan, number, log) for number, log in enumerate(logs)]
    try:
        _watch(plan, known, started)
    except KeyboardInterrupt:
        for process in started:
            process.terminate()
        until = time.monotonic() + PATIENCE
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()  # one that hangs; its last checkpoint is whole
        raise
    failed = {}
    for log, process in zip(logs, started, strict=True):
        if process.returncode == 2:
            failed[log.stem] = _last_line(log).removeprefix("mvmae: ")
        elif process.returncode:
            raise RuntimeError(f"a process ended with status {process.returncode}: see {log}")
    return Outcome(0, failed, [])


def _start(plan: Plan, number: int, log: Path) -> subprocess.Popen[bytes]:
    """One process with a share of the cores, and a GPU where there are some."""
    asked = plan.asked
    words = words_of(replace(asked, jobs=1))
    environment = os.environ | {"MVMAE_OUTPUT": "plain"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // asked.jobs)))
    if count := torch.cuda.device_count() if asked.device != "cpu" else 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % count]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "mvmae", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C comes here, and is passed on once
        )


def _watch(plan: Plan, known: Ready, started: list[subprocess.Popen[bytes]]) -> None:
    """Say each cell that is done, until all processes have ended."""
    asked = plan.asked
    every = [*plan.controls(), *plan.trained()]
    left = [cell for cell in every if not cells.is_done(cell, asked, known.images)]
    while True:
        ended = all(process.poll() is not None for process in started)
        for cell in [cell for cell in left if cells.is_done(cell, asked, known.images)]:
            left.remove(cell)
            terminal.people().print(
                f"[{len(every) - len(left)}/{len(every)}] {cell.folder.name} is done"
            )
        if ended:
            return
        time.sleep(LOOK)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else f"see {log}"
