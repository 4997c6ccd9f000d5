"""The files that the checks read."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("src", "tests", "benchmarks", "examples", "checks")
PAGES = ("README.md", "CONTRIBUTING.md", "docs", "benchmarks", "examples")


def find(folders: tuple[str, ...], suffix: str) -> list[Path]:
    """Return the files with a suffix in folders of the repository, sorted. Files are kept."""
    found: list[Path] = []
    for name in folders:
        path = ROOT / name
        found += [path] if path.is_file() else path.rglob(f"*{suffix}")
    return sorted(path for path in found if path.suffix == suffix)


def relative_name(path: Path) -> str:
    """Return the path as an editor can open it from the repository's top."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def report(problems: list[str]) -> None:
    """Print one problem per line and end with status 1 if there are any."""
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(bool(problems))
