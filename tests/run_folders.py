"""Shared by tests of runs: reading and comparing run folders."""

import csv
import json
import operator
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils._pytree import tree_flatten_with_path

TIMES = {"seconds", "images_per_second", "data_wait"}  # differ between any two runs
PRODUCTS = {"encoder.safetensors", "encoder.json", "health.json"}
NAMED = {"config", "checksum"}  # of a checkpoint: where the folder's name is, and its sum
RUN = {"config.json", "environment.json", "metrics.jsonl", "checkpoints", *PRODUCTS}


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics(run)]


def state(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def skipped_paths(run: Path) -> list[str]:
    with (run / "skipped.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(row["reason"] for row in rows)
    return [row["path"] for row in rows]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_same_run(ours: Path, theirs: Path, products: Iterable[str] = PRODUCTS) -> None:
    """Assert that metrics, checkpoint and other files are equal, except for times and the name."""
    assert timeless(ours) == timeless(theirs)
    for name in products:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    one, other = (
        tree_flatten_with_path({k: v for k, v in state(run).items() if k not in NAMED})[0]
        for run in (ours, theirs)
    )
    assert len(one) == len(other) > 100
    for (path, value), (other_path, other_value) in zip(one, other, strict=True):
        assert path == other_path
        same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert same(value, other_value), path


def wait_for_lines(run: Path, count: int) -> None:
    """Wait until the run has written `count` lines of metrics, at most a minute."""
    for _ in range(6000):
        file = run / "metrics.jsonl"
        if file.exists() and file.read_text().count("\n") >= count:
            return
        time.sleep(0.01)


def read_output(capsys) -> str:
    """Return what was printed, in one line, because tables are as wide as the terminal."""
    return " ".join(capsys.readouterr().out.split())
