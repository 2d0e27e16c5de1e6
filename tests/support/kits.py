"""What the tests of the sample apps share: their sources, which nothing here can compile, as syntax trees; READMEs."""

import re
from collections.abc import Iterator
from pathlib import Path

import keras
import tree_sitter_kotlin
import tree_sitter_swift
import typer
from tree_sitter import Language, Node, Parser

from keras_efficientformer import EfficientFormer, cli
from keras_efficientformer.segmentation import SemanticFPN

LANGUAGES = {
    ".kt": Language(tree_sitter_kotlin.language()),
    ".kts": Language(tree_sitter_kotlin.language()),
    ".swift": Language(tree_sitter_swift.language()),
}
STRINGS = ("string_literal", "line_string_literal")
NUMBERS = ("number_literal", "integer_literal", "float_literal", "real_literal")


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in LANGUAGES)


def parse(path: Path, content: bytes | None = None) -> Node:
    """The syntax tree of a file, or of other content in the file's language."""
    return Parser(LANGUAGES[path.suffix]).parse(path.read_bytes() if content is None else content).root_node


def nodes(root: Node, *kinds: str) -> Iterator[Node]:
    """A node and all that is below it, in the order of the text; of these kinds, if any are given."""
    if not kinds or root.type in kinds:
        yield root
    for child in root.children:
        yield from nodes(child, *kinds)


def text(node: Node) -> str:
    return (node.text or b"").decode()


def mistakes(root: Node) -> list[str]:
    """Where the parser found something wrong: line, and what stands or is missing there."""
    return [f"line {node.start_point.row + 1}: {node}" for node in nodes(root) if node.is_error or node.is_missing]


def literal(node: Node) -> str | int | float:
    """The value of a literal without escapes and interpolations."""
    if node.type in STRINGS:
        return text(node)[1:-1]
    return float(text(node)) if "." in text(node) else int(text(node))


def literals(root: Node) -> list[str | int | float]:
    return [literal(node) for node in nodes(root, *STRINGS, *NUMBERS)]


def declaration(root: Node, name: str) -> Node:
    """The class, enumeration or object of a name."""
    return next(
        node
        for node in nodes(root, "object_declaration", "class_declaration")
        if text(next(nodes(node, "identifier", "type_identifier"))) == name
    )


def constants(root: Node) -> dict[str, str | int | float]:
    """{name: value} of the properties that are declared as a literal."""
    found = {}
    for declaration in nodes(root, "property_declaration"):
        name = next(nodes(declaration, "variable_declaration", "pattern"))
        values = [child for child in declaration.children if child.type in STRINGS + NUMBERS]
        if values:
            found[text(name).partition(":")[0]] = literal(values[0])
    return found


def references(root: Node, owner: str) -> set[str]:
    """What is taken of `owner`: the B of each A.B."""
    chains = (text(node) for node in nodes(root, "navigation_expression"))
    return {chain.split(".")[1] for chain in chains if chain.startswith(f"{owner}.")}


def steps(readme: Path) -> list[str]:
    """The numbered steps of a README, in order; the numbers must be 1, 2, 3, ..."""
    found = re.findall(r"^(\d+)\. (.+(?:\n   .+)*)", readme.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [step for _, step in found]


def export_arguments(readme: Path) -> dict:
    """The arguments of the README's first export command as the command line understands them."""
    words, *_ = re.findall(r"`efficientformer export (\S+) ([^`]+)`", readme.read_text())
    group = typer.main.get_group(cli.export)
    command = group.commands[words[0]]
    return command.make_context(words[0], words[1].split()).params


def segmenter(shape: tuple[int, int, int], classes: int) -> keras.Model:
    """A small segmentation model of random weights, under the name that one of L1 has."""
    backbone = EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=shape, include_top=False)
    names = [f"class {number}" for number in range(classes)]
    return SemanticFPN(backbone, classes, 16, 8, labels=names, name="efficientformer_l1_semantic_fpn")


def missing_files(readme: Path, *folders: Path) -> set[str]:
    """The paths in code quotes and links that none of the folders has."""
    content = readme.read_text()
    words = " ".join(re.findall(r"`([^`]+)`", content)).split() + re.findall(r"\]\(([^)]+)\)", content)
    paths = {word for word in words if re.fullmatch(r"[\w.-]*(/[\w.-]+)+|[\w-]+\.(yml|kt|swift)", word)}
    return {path for path in paths if not any((folder / path).exists() for folder in folders)}
