"""Every message with which the package raises an error, as its sources have it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from repository import ROOT

PACKAGE = ROOT / "keras_efficientformer"
# What stands for a value that the message names.
VALUE = "…"


def error_list() -> str:
    """A table for each room: the class of the error and its message."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        rows = [f"| `{name}` | {message} |" for name, message in _messages(path)]
        rooms.setdefault(f"{parts[0]}/" if len(parts) > 1 else "Top level", []).extend(rows)
    found = {room: sorted(set(rows)) for room, rows in rooms.items() if rows}
    head = "| error | message |\n|---|---|\n"
    return "\n\n".join(f"### {room}\n\n{head}" + "\n".join(rows) for room, rows in found.items()) + "\n"


def _messages(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        # Some are made in one place and raised in others.
        if isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rpartition(".")[2]
            message = _text(node.args[0])
            if name.endswith(("Error", "BadParameter")) and message.strip(f"{VALUE}. "):
                yield name, _escaped(message)


def _text(node: ast.expr) -> str:
    """A string, with `VALUE` in place of what is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return VALUE


def _escaped(message: str) -> str:
    for character in "\\|*[]<>":
        message = message.replace(character, f"\\{character}")
    return " ".join(message.split())
