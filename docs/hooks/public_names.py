"""The public names of a module, each with its docstring, as mkdocstrings shows it."""

import ast
from pathlib import Path

from repository import ROOT


def public_names(module: str) -> str:
    """A section for each name of a module's `__all__`; where there is none, for each function and class in it."""
    path = ROOT.joinpath(*module.split("."))
    # Where names are imported late, the stub has them.
    sources = (path / "__init__.pyi", path / "__init__.py", path.with_suffix(".py"))
    statements = ast.parse(next(filter(Path.exists, sources)).read_text()).body
    names = [
        name
        for statement in statements
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        for name in ast.literal_eval(statement.value)
    ] or [
        statement.name
        for statement in statements
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and not statement.name.startswith("_")
    ]
    return "".join(f"::: {module}.{name}\n\n" for name in sorted(names))
