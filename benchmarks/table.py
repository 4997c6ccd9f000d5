"""Test the method's claims at a size that two cores can run: six rows, equal views.

    python benchmarks/table.py imagenette/ --out runs/table

DATA has train/CLASS and val/CLASS. The encoders train on train/ without labels; kNN and the linear
probe train on train/ with labels and test on val/. `mae` gets one view per image and twice
the epochs, so that every encoder sees the same number of views. Existing rows are not run again.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvmae.cli.main import main
from mvmae.storage.results import slug

ARMS = {  # name in the table -> variant of the base recipe
    "MAE": "+mae",
    "contrast only": "+contrast-only",
    "one target": "+one-target",
    "the method": "",
}
BASELINES = ("raw pixels", "untrained encoder")
NAMES = {"raw pixels": "raw pixels", "the same, untrained": "untrained encoder"}  # in a result
ACCENT, PLAIN, INK = "#0f766e", "#b6c2c9", "#1f2933"


def parse_options() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--recipe", default="tiny-cpu")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="also draw the kNN column")
    return parser.parse_args()


def run_all(options: Namespace) -> int:
    """Train and judge every arm, print the table and write it as JSON."""
    began = time.perf_counter()
    for variant in ARMS.values():
        if status := train_and_judge(options, variant):
            return status
    table = collect_rows(options)
    environment = json.loads((run_folder(options, "") / "environment.json").read_text())
    result = {
        "data": options.data.name,
        "recipe": options.recipe,
        "epochs": options.epochs,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - began),
        "rows": table,
        "environment": environment,
    }
    (options.out / f"table-{options.seed}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(table))
    print(f"{result['seconds']} s")
    if options.figure:
        draw(table, options.figure)
    return 0


def run_folder(options: Namespace, variant: str) -> Path:
    """Return the run folder of an arm."""
    return options.out / f"{(variant or '+method')[1:]}-{options.seed}"


def result_file(options: Namespace, variant: str, command: str) -> Path:
    """Return the result file that a command writes for an arm."""
    return run_folder(options, variant) / "results" / f"{command}-{slug(str(options.data))}.json"


def train_and_judge(options: Namespace, variant: str) -> int:
    """Train and judge one arm, unless its files exist; return the exit status."""
    run = run_folder(options, variant)
    if not (run / "encoder.safetensors").exists():
        passes = 2 if variant == "+mae" else 1
        command = ["pretrain", str(options.data / "train"), "--recipe", options.recipe + variant]
        command += ["--epochs", str(passes * options.epochs), "--warmup-epochs", str(passes)]
        if status := run_command(
            [*command, "--seed", str(options.seed), "--out", str(run), "--overwrite"]
        ):
            return status
    for command in ("knn", "probe"):
        baselines = [] if variant == "+mae" else ["--no-baselines"]
        if not result_file(options, variant, command).exists() and (
            status := run_command([command, str(run), str(options.data), *baselines])
        ):
            return status
    return run_command(["reconstruct", str(run), str(options.data / "val")]) if not variant else 0


def run_command(command: list[str]) -> int:
    """Print a command, run it and return its exit status."""
    print("\n$ mvmae", " ".join(command), flush=True)
    return main(command)


def collect_rows(options: Namespace) -> list[dict]:
    """Return the rows, from the results in the run folders."""
    scores: dict[str, dict] = {name: {"name": name} for name in (*BASELINES, *ARMS)}
    for name, variant in ARMS.items():
        for command in ("knn", "probe"):
            result = json.loads(result_file(options, variant, command).read_text())
            k = result["headline"].get("k")
            for row in result["rows"]:
                if row["notes"].get("k") == k:
                    label = NAMES.get(row["name"], name)
                    scores[label].setdefault(command, {})[row["token"]] = row["top1"]
    return list(scores.values())


def markdown(table: list[dict]) -> str:
    """Return the table as in docs/results.md."""
    lines = [
        "| features | kNN, mean token | kNN, class token | linear, mean token | linear, class |"
    ]
    lines += ["|---|--:|--:|--:|--:|"]
    for row in table:
        cells = [f"{row[command][t]:.1f}" if t in row[command] else "" for command, t in CELLS]
        if "pixels" in row["knn"]:
            cells = [f"{row['knn']['pixels']:.1f}", "", f"{row['probe']['pixels']:.1f}", ""]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


CELLS = (("knn", "mean"), ("knn", "cls"), ("probe", "mean"), ("probe", "cls"))


def draw(table: list[dict], file: Path) -> None:
    """Draw bars of the kNN column."""
    names = [row["name"] for row in table]
    values = [row["knn"].get("mean", row["knn"].get("pixels")) for row in table]
    figure = Figure(figsize=(7.2, 2.7), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    colors = [ACCENT if name == "the method" else PLAIN for name in names]
    bars = axis.barh(names[::-1], values[::-1], color=colors[::-1], height=0.68)
    axis.bar_label(bars, fmt="%.1f", padding=4, fontsize=9, color=INK)
    axis.set_xlim(0, max(values) * 1.12)
    axis.set_xlabel("kNN top-1 on images never trained on, %", fontsize=9, color=INK)
    axis.tick_params(length=0, labelsize=9, colors=INK)
    axis.xaxis.set_ticks([])
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(run_all(parse_options()))
