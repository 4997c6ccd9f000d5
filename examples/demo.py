"""Run the demo: pre-train the method and MAE on built-in photographs and compare them.

It takes about three minutes. Every line after a `$` is a command that also works in a shell; here
the commands share one process, which loads torch only once.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

from mvmae.cli.main import main

RUNS = Path("runs")
COMMANDS = (
    f"pretrain photos --recipe demo --out {RUNS}/demo --overwrite",
    f"pretrain photos --recipe demo+mae --out {RUNS}/demo-mae --overwrite",
    f"knn {RUNS}/demo photos",
    f"knn {RUNS}/demo-mae photos --no-baselines",
    f"probe {RUNS}/demo photos",
    f"report {RUNS}/demo {RUNS}/demo-mae --data photos --out {RUNS}/demo.html",
    f"report {RUNS}/demo --data photos",
)


def run_all() -> int:
    """Run the commands in turn and print a summary; stop at the first that fails."""
    began = time.perf_counter()
    for command in COMMANDS:
        print(f"\n$ mvmae {command}", flush=True)
        if status := main(shlex.split(command)):
            return status
    method, untrained, pixels = rows("demo", "knn")
    (mae,) = rows("demo-mae", "knn")
    print(
        f"\nkNN top-1: raw pixels {pixels:.1f}, untrained encoder {untrained:.1f}, "
        f"MAE after the same number of views {mae:.1f}, this method {method:.1f} %"
    )
    print(f"Open {RUNS}/demo/report.html, and {RUNS}/demo.html for both side by side")
    print(f"The demo took {time.perf_counter() - began:.0f} s.")
    return 0


def rows(run: str, command: str) -> list[float]:
    """Accuracies that a command wrote to a run folder: the encoder's, then its baselines'."""
    result = json.loads((RUNS / run / "results" / f"{command}-photos.json").read_text())
    counts = result["headline"]
    return [
        row["top1"]
        for row in result["rows"]
        if row["token"] in (counts["token"], "pixels") and row["notes"].get("k") == counts.get("k")
    ]


if __name__ == "__main__":
    sys.exit(run_all())
