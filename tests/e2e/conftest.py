"""The command line as a user types it, on runs of a second."""

import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import wait_for_lines

from mvmae.cli.main import main

A_SECOND = {  # 3 of 16 patches visible, 8 images in a batch
    "recipe": "demo",
    "model.image-size": 16,
    "model.decoder-dim": 32,
    "batch-size": 8,
    "epochs": 4,
    "warmup-epochs": 0,
    "log-every": 2,
    "device": "cpu",
    "workers": 0,
}


@pytest.fixture
def pretrain_command() -> Callable[..., list[str]]:
    """Makes the arguments of `mvmae pretrain` for data and a run folder.

    Further options are given by name: `{"base-lr": 0.1}`; None leaves one of `A_SECOND` out.
    """

    def make(data: Path | str, out: Path | str, options: dict | None = None) -> list[str]:
        words = ["pretrain", str(data), "--out", str(out)]
        for name, value in (A_SECOND | (options or {})).items():
            if value is None:
                continue
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{name}", *map(str, values)]
        return words

    return make


@pytest.fixture
def pretrain(pretrain_command):
    """Runs `mvmae pretrain` on data into a run folder; its exit status."""

    def run(data, out, options=None, *flags) -> int:
        return main([*pretrain_command(data, out, options), *flags])

    return run


@pytest.fixture
def here(home, tmp_path, monkeypatch, capsys) -> Path:
    """A copy of the module's `home` as the working folder; output so far is dropped."""
    shutil.copytree(home, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    capsys.readouterr()
    return tmp_path / "here"


@pytest.fixture
def signal_when():
    """Sends this process a signal as soon as `wait` returns."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    watches = []

    def watch(number: int, wait: Callable[[], None]) -> None:
        def send() -> None:
            wait()
            os.kill(os.getpid(), number)

        watches.append(threading.Thread(target=send))
        watches[-1].start()

    yield watch
    for thread in watches:
        thread.join()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def send_after(signal_when):
    """Sends this process a signal as soon as a run has written `lines` lines of metrics."""

    def watch(number: int, run: Path, lines: int) -> None:
        signal_when(number, lambda: wait_for_lines(run, lines))

    return watch
