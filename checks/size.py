"""How much code there is, and how much of it a pre-training run needs: `python -m checks.size`.

Code lines are lines without blanks, comments and docstrings. The second half pre-trains on the
built-in photographs for one epoch, which takes less than a minute; `--no-run` leaves it out.
"""

import ast
import io
import statistics
import sys
import tempfile
import tokenize
import traceback
from pathlib import Path

from checks.files import ROOT, find

SOURCE = ROOT / "src" / "mvmae"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def docstring_lines(tree: ast.AST) -> set[int]:
    """Return the lines of docstrings, including those below the fields of a class."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def code_lines(path: Path) -> int:
    """Return the number of lines of a Python file that hold code."""
    text = path.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(text)))


def comment_lines(path: Path) -> int:
    """Return the number of lines of a Python file that hold a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def statements(path: Path) -> int:
    """Return the number of statements in a Python file, without docstrings."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    texts = [
        node
        for node in nodes
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return sum(isinstance(node, ast.stmt) for node in nodes) - len(texts)


def function_lengths(path: Path) -> list[int]:
    """Return the lines of each function in a Python file, with decorators left out."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def show_code() -> None:
    """Print the size of the package and of its tests."""
    files = find(("src",), ".py")
    lines = sum(map(code_lines, files))
    density = sum(map(statements, files)) / lines
    total = sum(path.read_text().count("\n") for path in files)
    comments = sum(map(comment_lines, files)) / total
    lengths = [length for path in files for length in function_lengths(path)]
    print(f"src         {lines:,} code lines in {len(files)} files")
    print(f"density     {density:.3f} statements per code line; {comments:.1%} comment lines")
    print(f"functions   median {statistics.median(lengths):.0f} lines, longest {max(lengths)}")
    tests = find(("tests",), ".py")
    print(f"tests       {sum(map(code_lines, tests)):,} code lines in {len(tests)} files")


def show_run() -> None:
    """Pre-train for one epoch, then print what was loaded and the calls from main to the loss."""
    # Imported here, so that `--no-run` works without torch.
    from mvmae.cli.main import main
    from mvmae.method import losses

    nt_xent, calls = losses.nt_xent, []

    def noting(*args: object, **options: object) -> object:
        if not calls:
            calls.extend(traceback.extract_stack()[:-1])
        return nt_xent(*args, **options)

    losses.nt_xent = noting
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        status = main(["pretrain", "--recipe", "demo", "--epochs", "1", "--out", out, "--quiet"])
    if status:
        sys.exit(status)
    found = {Path(getattr(module, "__file__", None) or "/") for module in sys.modules.values()}
    loaded = sorted(path for path in found if path.is_relative_to(SOURCE))
    ours = [call for call in calls if call.filename.startswith(str(SOURCE))]
    names = [call.name for call in ours if not call.name.startswith("<")] + ["nt_xent"]
    files = {call.filename for call in ours} | {losses.__file__}
    print(f"pretrain    loads {sum(map(code_lines, loaded)):,} code lines in {len(loaded)} files")
    print(f"to the loss {len(names) - 1} calls in {len(files)} files: {' > '.join(names)}")


if __name__ == "__main__":
    show_code()
    if "--no-run" not in sys.argv:
        show_run()
