"""Files, symbols and modules that the documentation names exist."""

import ast
import re
from functools import cache

import pytest

from tests.unit.docs.pages import LIVING, ROOT, code_blocks, page_name

SOURCE = ROOT / "src" / "mvmae"
FILE_AND_SYMBOL = re.compile(r"`((?:[\w.]+/)*\w+\.py)(?:: (\w[\w.]*))?`")
REPOSITORY_PATH = re.compile(r"\b(?:src|tests|benchmarks|examples|docs|checks)/[\w./*-]*\w")
DOTTED = re.compile(r"(?<![\w/])mvmae(?:\.[A-Za-z_]\w*)+")


@cache
def names_in(path):
    """Return every name that a file defines at any level, and the strings of a lazy `__init__`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Constant) and path.name == "__init__.py":
            names.add(node.value)
    return names


def resolves(dotted):
    """Whether `mvmae.module.symbol` is a module, or a name that one of its modules defines."""
    folder, rest = SOURCE, dotted.split(".")[1:]
    while rest and (folder / rest[0]).is_dir():
        folder /= rest.pop(0)
    if not rest:
        return True
    file = folder / f"{rest[0]}.py"
    if file.is_file():
        rest.pop(0)
    else:
        file = folder / "__init__.py"
    return all(name in names_in(file) for name in rest)


@pytest.mark.parametrize("page", LIVING, ids=page_name)
def test_files_and_their_symbols_exist(page):
    for name, symbol in FILE_AND_SYMBOL.findall(page.read_text()):
        found = [root / name for root in (SOURCE, ROOT) if (root / name).is_file()]
        assert found, f"{page.name} names {name}"
        for part in symbol.split(".") if symbol else []:
            assert part in names_in(found[0]), f"{page.name} names {name}: {symbol}"


@pytest.mark.parametrize("page", LIVING, ids=page_name)
def test_paths_in_the_repository_exist(page):
    for match in REPOSITORY_PATH.finditer(page.read_text()):
        before = page.read_text()[: match.start()][-40:]
        if before.endswith(("/", "-")) or "http" in before.rsplit(maxsplit=1)[-1:]:
            continue
        assert list(ROOT.glob(match[0])), f"{page.name} names {match[0]}"


@pytest.mark.parametrize("page", LIVING, ids=page_name)
def test_dotted_names_exist(page):
    for dotted in DOTTED.findall(page.read_text()):
        assert resolves(dotted), f"{page.name} names {dotted}"


@pytest.mark.parametrize("page", LIVING, ids=page_name)
def test_imports_in_examples_exist(page):
    for block in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mvmae"):
                for alias in node.names:
                    assert resolves(f"{node.module}.{alias.name}"), f"{page.name}: {alias.name}"


def test_the_design_lists_every_import_inside_a_function():
    page = (ROOT / "docs" / "design.md").read_text()
    listed = page.split("## Imports inside functions")[1].split("\n## ")[0]
    for path in sorted(SOURCE.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                has_import = any(
                    isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function)
                )
                name = path.relative_to(SOURCE).as_posix()
                assert not has_import or f"`{name}`" in listed, f"{name}: {function.name}"


def test_a_name_that_does_not_exist_is_noticed():
    assert resolves("mvmae.method.losses.nt_xent")
    assert not resolves("mvmae.method.losses.no_such_loss")
    assert not resolves("mvmae.no_such_room")
