"""The structure of the package: no circles among its modules, sizes of files and folders, reasons for late imports.

The direction of imports is import-linter's matter (pyproject.toml); here is what it cannot say.
"""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT

PACKAGE = ROOT / "keras_efficientformer"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
LONGEST_MODULE = 450  # lines
LARGEST_FOLDER = 12  # modules
LATE_IMPORTS = 24  # how many imports of the package's own modules stand in functions


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """(statement, module) of each import of the package's own modules, those in functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_efficientformer"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node, inner if inner in NAMES else str(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("keras_efficientformer"):
                    yield node, alias.name


def late_imports(path: Path) -> list[ast.ImportFrom]:
    """Imports of the package's own modules that do not run when the module is imported, once each."""
    found: list[ast.ImportFrom] = []
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and node not in found:
                    found.append(node)
    return [node for node in found if (node.module or "").startswith("keras_efficientformer")]


def test_no_circle_among_modules():
    """Imports in functions count: a circle that is hidden there is one."""
    # A folder's __init__ hands names on from its own modules; what asks the folder gets them from there.
    graph = {name_of(path): {module for _, module in imports(path)} for path in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == NAMES
    assert sum(map(len, graph.values())) > 300  # the imports were found


def test_late_imports_have_reasons():
    found = 0
    for path in MODULES:
        lines = path.read_text().split("\n")
        for node in late_imports(path):
            found += 1
            first = node.lineno - 1
            while lines[first - 1].strip().startswith(("from ", "import ")):  # one comment may head several
                first -= 1
            assert "#" in "".join(lines[first - 1 : node.end_lineno]), (
                f"{path.relative_to(ROOT)}:{node.lineno} imports in a function and does not say why"
            )
    assert found <= LATE_IMPORTS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_literally_what_they_do(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_MODULE
    docstring = ast.get_docstring(ast.parse(text)) or ""
    first = docstring.partition("\n")[0]
    assert first.endswith((".", ":")), "the first line is a sentence"
    if path.name != "__init__.py":
        room = path.parent.relative_to(PACKAGE).as_posix()
        assert f"Room: {'top level' if room == '.' else room}" in docstring


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_folders_are_small(folder):
    assert (folder / "__init__.py").exists()
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= LARGEST_FOLDER


def test_one_public_class_name_means_one_thing():
    """Classes and constants of one name in two modules are the same to a reader, so there are none."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if re.fullmatch(r"[A-Z]\w+", name):
                    places.setdefault(name, []).append(name_of(path))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}
