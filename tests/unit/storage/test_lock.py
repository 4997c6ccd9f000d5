"""The lock: held once, released by a kill even if a forked child lives, and gone afterwards."""

import os
import signal
import subprocess
import sys

import pytest

from mvmae.errors import UserError
from mvmae.storage.lock import holder, locked, try_lock

HOLD_AND_FORK = (
    "import os, sys, time\n"
    "from pathlib import Path\n"
    "from mvmae.storage.lock import try_lock\n"
    "with try_lock(Path(sys.argv[1])):\n"
    "    child = os.fork()\n"
    "    if child: print(child, flush=True)\n"
    "    time.sleep(600)\n"
)


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    file = tmp_path / "new" / "lock"
    with try_lock(file) as first, try_lock(file) as second:
        assert (first, second) == (True, False)
        assert holder(file).startswith(f"process {os.getpid()} on ")
    assert not list(file.parent.iterdir())
    with try_lock(file) as again:
        assert again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_killed_process_releases_its_lock_even_if_its_child_lives(tmp_path):
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD_AND_FORK, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        try:
            with try_lock(file) as is_held:
                assert not is_held
            other.kill()
            other.wait()
            os.kill(child, 0)  # it lives
            with try_lock(file) as is_held:
                assert is_held
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_is_held_and_removed_if_it_stays_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder):
        assert folder.is_dir()
        with pytest.raises(UserError, match=r"another X$"), locked(folder, flag="X"):
            pass
    assert not (tmp_path / "a").exists()
    with locked(folder):
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(*_: object) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock._unix.lock_fd_nonblocking", no_locks)
    with try_lock(tmp_path / "lock") as is_held:
        assert is_held
    assert "no locks in" in capsys.readouterr().out
