"""The tutorial's notebook as Markdown: its texts, its code, and what came of it when it was last run."""

from nbconvert import MarkdownExporter
from repository import ROOT
from traitlets.config import Config

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def notebook_page() -> str:
    # Pictures stand in the page itself.
    exporter = MarkdownExporter(config=Config({"ExtractOutputPreprocessor": {"enabled": False}}))
    text, _ = exporter.from_filename(str(NOTEBOOK))
    return text.replace("![png](", "![what the cell above draws](")
