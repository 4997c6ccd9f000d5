"""The demo: the method and MAE on the built-in photographs, both judged, in about three minutes.

Every line after a `$` is a command that works in a shell too; here they share one process, which
saves loading torch each time.
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
    """Run the commands one after the other and sum up; the first that fails ends it."""
    began = time.perf_counter()
    for command in COMMANDS:
        print(f"\n$ mvmae {command}", flush=True)
        if status := main(shlex.split(command)):
            return status
    method, untrained, pixels = rows("demo", "knn")
    (mae,) = rows("demo-mae", "knn")
    print(
        f"\nkNN top-1: raw pixels {pixels:.1f}, untrained encoder {untrained:.1f}, "
        f"MAE after as many views {mae:.1f}, this method {method:.1f} %"
    )
    print(f"Look at {RUNS}/demo/report.html, and at both beside each other: {RUNS}/demo.html")
    print(f"All of it took {time.perf_counter() - began:.0f} s.")
    return 0


def rows(run: str, command: str) -> list[float]:
    """Accuracies that a command left in a run folder: the encoder's, and its baselines'."""
    result = json.loads((RUNS / run / "results" / f"{command}-photos.json").read_text())
    counts = result["headline"]
    return [
        row["top1"]
        for row in result["rows"]
        if row["token"] in (counts["token"], "pixels") and row["notes"].get("k") == counts.get("k")
    ]


if __name__ == "__main__":
    sys.exit(run_all())
