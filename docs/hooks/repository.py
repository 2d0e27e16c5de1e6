"""Documents of the repository as texts of pages, and where their links lead in the site."""

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
HEADING = re.compile(r"^(#{1,6}) (.+)$")
# Code, in which nothing is a link, or a link's target.
CODE_OR_LINK = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`|(?<=\]\()([^)\s]+)(?=\))", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("http:", "https:", "mailto:", "data:")

anchor_of_title = slugify(case="lower")


class Heading(NamedTuple):
    """A heading of a Markdown text: the number of its line, its level and its anchor."""

    line: int
    level: int
    anchor: str


def headings(text: str) -> list[Heading]:
    found, in_code = [], False
    for number, line in enumerate(text.splitlines()):
        in_code ^= line.lstrip().startswith("```")
        match = None if in_code else HEADING.match(line)
        if match:
            found.append(Heading(number, len(match[1]), anchor_of_title(match[2].replace("`", ""), "-")))
    return found


class Shown(NamedTuple):
    """What a directive shows of a document, and under which heading of its page (empty: the page's title)."""

    document: str
    anchor: str
    text: str
    under: str


def shown_text(directive: str, argument: str, above: str) -> Shown:
    """What a directive shows.

    Args:
        directive: "document" (all of it), "intro" (what stands before its sections), "section", or "table" (a section's
            first, with the notes below it).
        argument: the document's path in the repository, and for a section `#` and its anchor.
        above: the page's own text above the directive, below whose last heading a section's own headings are put.

    Raises:
        ValueError: the document has no such section, or there is no such directive.
    """
    document, _, anchor = argument.partition("#")
    text = (ROOT / document).read_text()
    lines, found = text.splitlines(), headings(text)
    host = (headings(above) or [Heading(0, 1, "")])[-1]
    under = host.anchor if host.level > 1 else ""
    if directive == "document":
        return Shown(document, "", text, "")
    if directive == "intro":
        return Shown(document, "", "\n".join(lines[found[0].line + 1 : found[1].line]), under)
    places = [index for index, heading in enumerate(found) if heading.anchor == anchor]
    if directive not in ("section", "table") or not places:
        raise ValueError(f"The repository has no {directive} {argument}.")
    own = found[places[0]]
    ends = [heading.line for heading in found[places[0] + 1 :] if heading.level <= own.level]
    end = ends[0] if ends else len(lines)
    for heading in found:
        if own.line < heading.line < end:
            deeper = host.level - own.level
            lines[heading.line] = "#" * (heading.level + deeper) + lines[heading.line][heading.level :]
    if directive == "table":
        return Shown(document, "", _table("\n".join(lines[own.line + 1 : end])), under)
    return Shown(document, anchor, "\n".join(lines[own.line + 1 : end]), under)


def _table(text: str) -> str:
    """The first table of a text, and the paragraph after it if that explains the table's signs."""
    table = re.search(r"^(?:\|.*\n)+(?:\n¹(?:.+\n)+)?", f"{text}\n", re.MULTILINE)
    if not table:
        raise ValueError(f"There is no table in this text: {text}")
    return table[0]


@dataclass
class Repository:
    """Which page shows which part of the repository, and which files pages link to."""

    # (document, anchor) -> (page, anchor); an empty anchor is the whole.
    places: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    linked: set[str] = field(default_factory=set)

    def place(self, page: str, shown: Shown) -> None:
        """Says that a page shows this."""
        if shown.anchor or shown.text == (ROOT / shown.document).read_text():
            self.places.setdefault((shown.document, shown.anchor), (page, shown.under))
        for heading in headings(shown.text):
            self.places.setdefault((shown.document, heading.anchor), (page, heading.anchor))

    def with_links(self, text: str, document: str, page: str) -> str:
        """A text of a document, with its links as they have to be on a page of the site."""
        return CODE_OR_LINK.sub(lambda match: self._link(match[1], document, page) if match[1] else match[0], text)

    def _link(self, target: str, document: str, page: str) -> str:
        path, _, anchor = target.partition("#")
        if target.startswith(ELSEWHERE) or (not path and document == f"docs/{page}"):
            return target
        path = posixpath.normpath(posixpath.join(posixpath.dirname(document), path)) if path else document
        if (ROOT / path).is_dir():
            path = f"{path}/README.md"
        place, anchor = self._place(path, anchor)
        return posixpath.relpath(place, posixpath.dirname(page) or ".") + (f"#{anchor}" if anchor else "")

    def _place(self, path: str, anchor: str) -> tuple[str, str]:
        if path.startswith("docs/"):
            return path.removeprefix("docs/"), anchor
        if path == "README.md" and not anchor:
            return "index.md", ""
        if path.endswith(".md"):
            if (path, anchor) not in self.places:
                raise ValueError(f"No page shows {path}{'#' if anchor else ''}{anchor}, to which a page links.")
            return self.places[path, anchor]
        if not (ROOT / path).is_file():
            raise ValueError(f"A page links to {path}, which is not there.")
        self.linked.add(path)
        return f"files/{path}", anchor
