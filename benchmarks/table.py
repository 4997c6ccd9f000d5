"""Does the method do what it claims, at a size that two cores can run: six rows, equal views.

    python benchmarks/table.py imagenette/ --out runs/table

DATA has train/CLASS and val/CLASS. The encoders train on train/ without labels; kNN and the linear
probe learn from train/ with labels and test on val/. `mae` gets one view an image and twice the
epochs, so that every encoder sees equally many views. A row that is there already is not run again.
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


def parsed() -> Namespace:
    """What to run."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--recipe", default="tiny-cpu")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="also draw the kNN column")
    return parser.parse_args()


def run_all(options: Namespace) -> int:
    """Train and judge every arm, print the table, keep it as JSON."""
    began = time.perf_counter()
    for variant in ARMS.values():
        if status := train_and_judge(options, variant):
            return status
    table = collected(options)
    environment = json.loads((run_of(options, "") / "environment.json").read_text())
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


def run_of(options: Namespace, variant: str) -> Path:
    """Run folder of an arm."""
    return options.out / f"{(variant or '+method')[1:]}-{options.seed}"


def result_of(options: Namespace, variant: str, command: str) -> Path:
    """What a command says of an arm."""
    return run_of(options, variant) / "results" / f"{command}-{slug(str(options.data))}.json"


def train_and_judge(options: Namespace, variant: str) -> int:
    """One arm, unless it is there already."""
    run = run_of(options, variant)
    if not (run / "encoder.safetensors").exists():
        passes = 2 if variant == "+mae" else 1
        command = ["pretrain", str(options.data / "train"), "--recipe", options.recipe + variant]
        command += ["--epochs", str(passes * options.epochs), "--warmup-epochs", str(passes)]
        if status := said(
            [*command, "--seed", str(options.seed), "--out", str(run), "--overwrite"]
        ):
            return status
    for command in ("knn", "probe"):
        baselines = [] if variant == "+mae" else ["--no-baselines"]
        if not result_of(options, variant, command).exists() and (
            status := said([command, str(run), str(options.data), *baselines])
        ):
            return status
    return said(["reconstruct", str(run), str(options.data / "val")]) if not variant else 0


def said(command: list[str]) -> int:
    """Show the command and run it."""
    print("\n$ mvmae", " ".join(command), flush=True)
    return main(command)


def collected(options: Namespace) -> list[dict]:
    """The rows, from what the commands left in the run folders."""
    scores: dict[str, dict] = {name: {"name": name} for name in (*BASELINES, *ARMS)}
    for name, variant in ARMS.items():
        for command in ("knn", "probe"):
            result = json.loads(result_of(options, variant, command).read_text())
            k = result["headline"].get("k")
            for row in result["rows"]:
                if row["notes"].get("k") == k:
                    of = NAMES.get(row["name"], name)
                    scores[of].setdefault(command, {})[row["token"]] = row["top1"]
    return list(scores.values())


def markdown(table: list[dict]) -> str:
    """The table as it stands in docs/results.md."""
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
    """Bars of the kNN column."""
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
    sys.exit(run_all(parsed()))
