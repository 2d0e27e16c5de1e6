"""What the READMEs and CONTRIBUTING say of files and names of the project is so."""

import ast
import re
from pathlib import Path

import pytest
from project import ROOT, documents

DOCUMENTS = documents()
# In code spans: a path with a folder in it, or a module's name alone.
PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+)?|\w+\.py)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
# What commands write and users have.
NOT_OURS = re.compile(
    r"^(\.\.?/|~|/|val/|train/|test/|runs?/|photos/|Data/|out/)|<|\*|^(best|report)\.|^timm/|^snap-research/|^owner/"
)


def names_in(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document):
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = [path for path in PATH.findall(text) if not NOT_OURS.search(path)]
    assert len(paths) > 40
    package = ROOT / "keras_efficientformer"
    modules = {path.name for path in package.rglob("*.py")}
    for path in paths:
        assert (ROOT / path).exists() or (package / path).exists() or path in modules, path


def test_contributing_names_functions_that_exist():
    """Of each recipe: every `Name` or `function` in it is defined in the package, in tests or for the site."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    sources = [path for folder in ("keras_efficientformer", "tests", "docs") for path in (ROOT / folder).rglob("*.py")]
    defined = set().union(*map(names_in, sources))
    recipes = text[text.index("One place for each idea") :]
    spans = re.findall(r"`([A-Za-z_][\w.]*)`", recipes)
    named = {span.rpartition(".")[2] for span in spans if not span.endswith((".py", ".pyi"))}
    assert len(named) > 15
    assert named - defined - {path.stem for path in sources} == set()
