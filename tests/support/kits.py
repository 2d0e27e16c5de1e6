"""What the tests of the sample apps share: small models for them, their sources as syntax trees, READMEs."""

import re
from collections.abc import Iterator
from pathlib import Path

import keras
import tree_sitter_kotlin
import tree_sitter_swift
from networks import make_loud
from tree_sitter import Language, Node, Parser

from keras_efficientformer import EfficientFormer
from keras_efficientformer.segmentation import SemanticFPN

LANGUAGES = {
    ".kt": Language(tree_sitter_kotlin.language()),
    ".kts": Language(tree_sitter_kotlin.language()),
    ".swift": Language(tree_sitter_swift.language()),
}
# Names that another way of quoting, splitting or sorting would not leave as they are.
LABELS = ['say "hi"', "it's $5 ${x}", "back\\slash \\(x) \\n", "naïve 花 🐈", "<b>&amp;</b>"]
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


def input_sizes(root: Node) -> list[list[str | int | float]]:
    """The literals in each `InputSize(...)` of a `Model`."""
    calls = nodes(declaration(root, "Model"), "call_expression")
    return [literals(call) for call in calls if text(call).startswith("InputSize(")]


def references(root: Node, owner: str) -> set[str]:
    """What is taken of `owner`: the B of each A.B."""
    chains = (text(node) for node in nodes(root, "navigation_expression"))
    return {chain.split(".")[1] for chain in chains if chain.startswith(f"{owner}.")}


def steps(readme: Path) -> list[str]:
    """The numbered steps of a README, in order; the numbers must be 1, 2, 3, ..."""
    found = re.findall(r"^(\d+)\. (.+(?:\n   .+)*)", readme.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [step for _, step in found]


def classifier(labels: list[str]) -> keras.Model:
    """A small classifier of random weights that are large enough to tell images apart."""
    model = EfficientFormer(
        *((1, 1, 1, 2), (8, 16, 16, 32)),
        input_shape=(64, 96, 3),
        classes=len(labels),
        include_preprocessing=True,
        labels=labels,
        name="birds",
    )
    return make_loud(model)


def segmenter(labels: list[str]) -> keras.Model:
    """A small segmentation model of random weights."""
    backbone = EfficientFormer((1, 1, 1, 2), (8, 16, 16, 32), input_shape=(64, 96, 3), include_top=False)
    return make_loud(SemanticFPN(backbone, len(labels), 16, 8, labels=labels, name="street_scenes"))


def missing_files(readme: Path, *folders: Path) -> set[str]:
    """The paths in code quotes and links that none of the folders has; names alone may be anywhere in the first."""
    content = readme.read_text()
    words = " ".join(re.findall(r"`([^`]+)`", content)).split() + re.findall(r"\]\(([^)]+)\)", content)
    paths = {word for word in words if re.fullmatch(r"[\w.-]*(/[\w.-]+)+|[\w-]+\.(yml|kt|swift)", word)}
    missing = {path for path in paths if not any((folder / path).exists() for folder in folders)}
    return {path for path in missing if "/" in path or not any(folders[0].rglob(path))}
