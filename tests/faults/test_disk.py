"""A full disk stops the run with one line, and the checkpoint before it whole."""

import os
import resource
import shutil
import subprocess

import pytest
import torch
from run_folders import assert_same_run, state

from mvmae.cli.main import main
from mvmae.training import checkpoint


def limit_file_size(bytes_: int):
    """In the child: no file may grow beyond this size, as if the disk were full there."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))

    return limit


@pytest.mark.parametrize("where", [(), ("--save-in-background",)])
def test_full_disk_stops_the_run_with_one_line(tmp_path, command, where):
    run = tmp_path / "run"
    done = subprocess.run(
        [*command(run), *where], capture_output=True, text=True, preexec_fn=limit_file_size(100_000)
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_run_goes_on_from_the_checkpoint_before_the_disk_was_full(tmp_path, command):
    whole, run = tmp_path / "whole", tmp_path / "run"
    subprocess.run(command(whole, epochs=2), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(command(run, epochs=2, save_every_minutes=0), check=True, timeout=300)
    shutil.copy(run / "checkpoints" / "previous.pt", run / "checkpoints" / "last.pt")
    before = state(run)["step"]
    size = (run / "checkpoints" / "last.pt").stat().st_size
    resume = ["--resume", "--out", str(run)]
    done = subprocess.run(
        [*command(run)[:4], *resume], capture_output=True, preexec_fn=limit_file_size(size // 2)
    )
    assert done.returncode == 2
    assert state(run)["step"] == before
    assert main(["pretrain", *resume]) == 0
    assert_same_run(run, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where the machine lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk to be had: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_save_on_a_full_disk_leaves_both_checkpoints_and_nothing_else(small_disk):
    for step in (1, 2):
        checkpoint.save(small_disk, {"step": step, "weights": torch.zeros(10_000)})
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(small_disk, {"step": 3, "weights": torch.zeros(1_000_000)})
    assert sorted(os.listdir(small_disk)) == ["last.pt", "previous.pt"]  # noqa: PTH208
    assert checkpoint.load(small_disk / "last.pt")["step"] == 2
    assert checkpoint.load(small_disk / "previous.pt")["step"] == 1
