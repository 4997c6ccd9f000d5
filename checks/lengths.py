"""Files of at most 400 lines and functions of at most 80: `python -m checks.lengths`.

Test files may be longer, because a file holds all the tests of one behaviour.
"""

import ast
from pathlib import Path

from checks.files import CODE, find, relative_name, report

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


def too_long(path: Path) -> list[str]:
    """Return what is too long in a Python file. Decorators and docstrings count."""
    text = path.read_text()
    problems = []
    lines = text.count("\n")
    if lines > MAX_FILE_LINES and not path.name.startswith("test_"):
        problems.append(
            f"{relative_name(path)}:1: {lines} lines; a file has at most {MAX_FILE_LINES}"
        )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                problems.append(
                    f"{relative_name(path)}:{node.lineno}: {node.name} has {lines} lines; "
                    f"a function has at most {MAX_FUNCTION_LINES}"
                )
    return problems


if __name__ == "__main__":
    report([problem for path in find(CODE, ".py") for problem in too_long(path)])
