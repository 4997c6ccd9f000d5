"""The rows of the paper's Tables 1 to 6 that are its own method's: command, figure, choices, cost.

Ji, Han and Rhee (2023), Applied Sciences 13(22), 12413. The figures are the paper's and not ours;
the costs are arithmetic, for no run of this size was made on any GPU. docs/reproduce.md shows the
rows, `mvmae recipes NAME` those of a recipe. No torch.
"""

from typing import NamedTuple

H100_TFLOPS = 800  # what large products of bf16 matrices reach, of the 989 on the data sheet
SHARE = 0.5  # of that, as docs/performance.md assumes of a step
IMAGENET, COCO = 1_281_167, 118_287  # training images
ADE20K_STEPS, ADE20K_BATCH = 160_000, 16


class Row(NamedTuple):
    """A row of a table, or the value of a cell."""

    where: str
    """Place in the paper."""

    recipe: str
    command: str
    command_line: str
    figure: str
    """The paper's own figure, which is not ours."""

    choices: tuple[str, ...]
    """What the paper leaves open or gets wrong, and is decided here (docs/paper.md says why)."""

    gflop: float
    """Matrix products of one image's forward pass and, where weights are trained, backward pass; a
    multiply-add counts as two operations. A test counts them with torch's own counter."""

    images: int
    """Images that pass through the network over the whole run."""

    @property
    def hours(self) -> float:
        """Hours of one H100 at `SHARE` of `H100_TFLOPS`, without evaluations."""
        return self.gflop * self.images / (SHARE * H100_TFLOPS * 1000) / 3600


METHOD = (
    "the paper does not say what is contrasted: here the mean of the visible patch tokens, no head",
    "lambda is named only in Table 5, whose best is 2; equation 4 gets its missing exponential",
    "equation 3 is a mean over the hidden patches, each normalised by its own mean and variance",
    "from MAE: crops of 0.2 to 1, bicubic, half of them mirrored, weight decay 0.05",
)
SHORT = (
    *METHOD,
    "Table 5's columns share no value, so its default is unknown: all else is as in `paper`",
    "batch 512 (section 4.3) in pre-training and fine-tuning; 40 epochs of warm-up here too",
)
FINE_TUNED = (
    "mixup 0.8 is an alpha, as in MAE, and not the probability that section 4.1.2 calls it",
    "all that the paper does not name is MAE's: AdamW, 5e-4 for 256 images, layer decay 0.65, drop "
    "path 0.1, cutmix, label smoothing, random erasing, the mean of the patch tokens",
)
PROBED = (
    "optimiser, rate and token are unnamed: MAE's LARS, 0.1 for 256 images, 10 epochs of warm-up, "
    "batch norm without weights; both tokens are trained and reported",
)
DETECTED = (
    "section 4.1.2 names Li et al. 2021: AdamW 8e-5, windows of 16, four global blocks, relative "
    "positions, no class token, FPN from four blocks, jitter of 0.1 to 2, batch norm over all GPUs",
)
SEGMENTED = (
    "section 4.1.2 names BEiT's code: UperNet of 768 channels as MAE used it, AdamW 1e-4, layer "
    "decay 0.65, 1500 steps of warm-up, crops of 512, one scale in the test",
)


def _pretraining_row(where: str, recipe: str, figure: str, gflop: float, epochs: int) -> Row:
    command_line = f"mvmae pretrain imagenet/train --recipe {recipe} --out runs/{recipe}"
    choices = METHOD if recipe.startswith("paper") else SHORT
    return Row(where, recipe, "pretrain", command_line, figure, choices, gflop, epochs * IMAGENET)


TWO_VIEWS = 73.89  # GFLOP of an image of `paper`
MASKS = {0.5: (79.22, 136.12), 0.75: (79.09, 84.33), 0.8: (79.25, TWO_VIEWS)}  # and GFLOP
MASKS |= {0.9: (79.23, 53.15), 0.95: (78.30, 42.84)}
LAMBDAS = {0.1: 78.10, 0.5: 78.09, 1.0: 78.09, 1.5: 79.31, 2.0: 79.64}
DECODERS = {1: (74.89, 50.15), 2: (78.56, 58.06), 4: (80.03, TWO_VIEWS)}
DECODERS |= {8: (80.03, 105.54), 12: (79.11, 137.20)}
TABLE_6 = {"ours": 79.09, "one target": 77.86, "no contrast": 74.33, "baseline": 76.48}
FINE = "after fine-tuning"

ROWS: tuple[Row, ...] = (
    _pretraining_row(
        "Table 1 and 2", "paper", f"84.3 {FINE}, 76.7 by linear probe", TWO_VIEWS, 1600
    ),
    _pretraining_row("Table 1, 800 epochs", "paper-800", f"83.2 {FINE}", TWO_VIEWS, 800),
    *(
        _pretraining_row(f"Table 5, mask ratio {v}", f"mask-{v}", f"{top1:.2f} {FINE}", gflop, 200)
        for v, (top1, gflop) in MASKS.items()
    ),
    *(
        _pretraining_row(
            f"Table 5, lambda {v:g}", f"lambda-{v:g}", f"{top1:.2f} {FINE}", TWO_VIEWS, 200
        )
        for v, top1 in LAMBDAS.items()
    ),
    *(
        _pretraining_row(
            f"Table 5, decoder of {v}", f"decoder-{v}", f"{top1:.2f} {FINE}", gflop, 200
        )
        for v, (top1, gflop) in DECODERS.items()
    ),
    *(
        _pretraining_row(f"Table 6, {name}", recipe, f"{TABLE_6[key]:.2f} {FINE}", TWO_VIEWS, 200)
        for name, recipe, key in (
            ("the method", "ablation", "ours"),
            ("one target", "one-target", "one target"),
            ("no contrast", "no-contrast", "no contrast"),
        )
    ),
    Row(
        *("Tables 1, 5 and 6, fine-tuning", "paper-finetune", "finetune"),
        "mvmae finetune runs/paper imagenet --recipe paper-finetune",
        "84.3 top-1, from `paper`; MAE 83.6",
        FINE_TUNED,
        gflop=105.15,
        images=100 * IMAGENET,
    ),
    Row(
        *("Table 2, linear probe", "paper-probe", "probe"),
        "mvmae probe runs/paper imagenet --recipe paper-probe",
        "76.7 top-1, from `paper`; MAE 68.0",
        PROBED,
        gflop=35.13,
        images=100 * IMAGENET,
    ),
    Row(
        *("Table 3, COCO", "paper-coco", "detect"),
        "mvmae detect runs/paper coco --recipe paper-coco",
        "51.3 AP box and 45.6 AP mask, from `paper`; MAE 50.3 and 44.9",
        DETECTED,
        gflop=4990,
        images=100 * COCO,
    ),
    Row(
        *("Table 4, ADE20K", "paper-ade20k", "segment"),
        "mvmae segment runs/paper ade20k --recipe paper-ade20k",
        "50.2 mIoU, from `paper`; MAE 48.1",
        SEGMENTED,
        gflop=3640,
        images=ADE20K_STEPS * ADE20K_BATCH,
    ),
)


def find_rows(recipe: str) -> tuple[Row, ...]:
    """The rows that a recipe is for; most have none."""
    return tuple(row for row in ROWS if row.recipe == recipe)


def describe(row: Row) -> str:
    """A row as `mvmae recipes NAME` tells it."""
    lines = [
        f"{row.where}: {row.command_line}",
        f"The paper: {row.figure}. Not ours: no run of this size has been made.",
        f"Cost by arithmetic: {row.hours:.1f} hours of an H100 at half of {H100_TFLOPS} TFLOP/s "
        f"({row.gflop:g} GFLOP x {row.images:,} images).",
        "Chosen where the paper is silent or wrong:",
        *(f"- {choice}" for choice in row.choices),
    ]
    return "\n".join(lines)
