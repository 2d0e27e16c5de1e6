"""What mkdocs calls: fills the directives of each page, mends its links, and adds the files that it links to.

A directive is a comment on a line of its own, `<!-- section: README.md#models -->`. With it a page shows a text of the
repository, which so has one copy, or what is made of code and results.
"""

import re
from collections.abc import Callable

from benchmark_tables import all_results, figure
from command_reference import command_reference
from error_list import error_list
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebook_page import notebook_page
from public_names import public_names
from repository import ROOT, Repository, Shown, shown_text

# {{ tflite_modes modes/int8/million_instructions }}: a figure of benchmarks/results/.
FIGURE = re.compile(r"\{\{ (\w+) ([^}]+) \}\}")
DIRECTIVE = re.compile(r"^<!-- ([a-z]+)(?:: (\S+))? -->$", re.MULTILINE)
# Directives whose text is made, and the document that its links begin at; those of `shown_text` show a document.
MADE: dict[str, tuple[Callable[..., str], str]] = {
    "benchmarks": (all_results, "README.md"),
    "command": (command_reference, "README.md"),
    "errors": (error_list, "README.md"),
    "names": (public_names, "README.md"),
    "notebook": (notebook_page, "docs/tutorial.ipynb"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces each page by the same with its directives filled, and adds what pages link to."""
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    repository = Repository()
    for page, text in pages.items():
        for match in DIRECTIVE.finditer(text):
            if match[1] not in MADE:
                repository.place(page, _shown(text, match))
    for page, text in pages.items():
        _replace(files, File.generated(config, page, content=_filled(page, text, repository)))
    for path in sorted(repository.linked):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def _replace(files: Files, file: File) -> None:
    old = files.get_file_from_path(file.src_uri)
    assert old is not None
    files.remove(old)
    files.append(file)


def _filled(page: str, text: str, repository: Repository) -> str:
    def fill(match: re.Match) -> str:
        if match[1] in MADE:
            make, document = MADE[match[1]]
            return repository.with_links(make(*filter(None, [match[2]])), document, page)
        shown = _shown(text, match)
        return repository.with_links(shown.text, shown.document, page)

    own = repository.with_links(text, f"docs/{page}", page)
    return FIGURE.sub(lambda match: figure(match[1], match[2]), DIRECTIVE.sub(fill, own))


def _shown(page_text: str, match: re.Match) -> Shown:
    return shown_text(match[1], match[2], page_text[: match.start()])
