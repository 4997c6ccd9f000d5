"""The pages of the documentation, and what is in their code blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Old names are part of the history, which is not rewritten.
LIVING = [page for page in PAGES if page.name != "log.md"]
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def code_blocks(page: Path, *languages: str) -> list[str]:
    """Return the contents of a page's fenced blocks in some languages; "" means unmarked blocks."""
    return [block for language, block in FENCED.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    """Return a page's text with its fenced blocks emptied, so that line numbers stay."""
    return FENCED.sub(lambda block: "\n" * block[0].count("\n"), page.read_text())


def page_name(page: Path) -> str:
    """Return a page's path in the repository, which names its tests."""
    return str(page.relative_to(ROOT))
