"""Fills the templates of report pages and model cards. Room: pages."""

import os
from typing import Any

from keras_efficientformer.errors import require
from keras_efficientformer.files import finished_file
from keras_efficientformer.reporting import versions_of


def require_page_tools(extra: str) -> None:
    """Checks that pages and their pictures can be made, before what they report is computed.

    Args:
        extra: the extra of this package that brings Jinja2 and matplotlib for that report.

    Raises:
        ImportError: one is not installed; the message names the extra.
    """
    for module in ("jinja2", "matplotlib"):
        require(module, "A report's page", extra)


def write_page(template: str, path: str | os.PathLike[str], overwrite: bool = False, **content: Any) -> None:
    """Writes a page.

    Args:
        template: its name in `templates/`.
        path: the file.
        overwrite: whether an existing file may be replaced.
        **content: what the template names, all of it but this package's version; text is escaped, so that a name of a
            file or class is never read as HTML.

    Raises:
        OSError: the folder is missing or cannot be written to, or the file exists and `overwrite` is False.
    """
    html = _render(template, content, autoescape=True)
    with finished_file(path, overwrite) as partial:
        # A file's name that is no UTF-8 is shown with its bytes in hexadecimal digits.
        partial.write_text(html, encoding="utf-8", errors="backslashreplace")


def render_text(template: str, **content: Any) -> str:
    """A filled template that is no HTML, in which nothing is escaped; arguments are those of `write_page`."""
    return _render(template, content, autoescape=False)


def _render(template: str, content: dict[str, Any], autoescape: bool) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_efficientformer.pages"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    version = versions_of("keras-efficientformer").get("keras-efficientformer", "")
    return environment.get_template(template).render(content, version=version)
