"""A run that is killed at any moment, again and again, ends as one that was left alone."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
from run_folders import PRODUCTS, state, timeless, wait_for_lines


def end(command: list[str], number: int, seconds: float) -> int:
    """Run a command, and signal it after some seconds if it still runs; return its status."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        complaint = process.communicate(timeout=300)[1].decode()
    assert "Traceback" not in complaint, complaint
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_run_that_is_killed_ten_times_ends_as_one_left_alone(tmp_path, command, background):
    rng = random.Random(int(background))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - began

    begin = command(killed) + (["--save-in-background"] if background else [])
    go_on = [sys.executable, "-m", "mvmae", "pretrain", "--resume", "--out", str(killed)]
    statuses = []
    for _ in range(10):
        is_there = any((killed / "checkpoints" / n).exists() for n in ("last.pt", "previous.pt"))
        again = [*begin, "--overwrite"] if killed.exists() else begin
        number = rng.choice((signal.SIGKILL, signal.SIGTERM))
        status = end(go_on if is_there else again, number, rng.uniform(0.5, 1.0) * took)
        assert status in (0, -signal.SIGKILL, 143, -signal.SIGTERM)
        statuses.append(status)
    assert any(statuses)  # it was disturbed
    subprocess.run(go_on, check=True, stdout=subprocess.DEVNULL)
    assert timeless(killed) == timeless(whole)
    for name in PRODUCTS:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(killed.rglob("*.tmp"))


def together(command: list[str]) -> list[subprocess.Popen]:
    """Start a command on two processes, as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    announced = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command,
            env=announced | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_run_on_two_processes_that_are_killed_goes_on_as_if_never_stopped(tmp_path, command):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [process.wait(timeout=300) for process in together(command(whole))] == [0, 0]
    processes = together(command(killed))
    wait_for_lines(killed, 5)
    for process in processes:
        process.kill()
        process.wait()
    assert 0 < state(killed)["step"] < 60
    go_on = [sys.executable, "-m", "mvmae", "pretrain", "--resume", "--out", str(killed)]
    assert [process.wait(timeout=300) for process in together(go_on)] == [0, 0]
    assert timeless(killed) == timeless(whole)
    for name in PRODUCTS:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
