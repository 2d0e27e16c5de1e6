"""The tutorial's notebook: as Markdown, with what came of it when it was last run; and run again.

    python docs/hooks/notebook_page.py

runs it in a folder of its own and writes its outputs into it.
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from repository import ROOT
from traitlets.config import Config

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def notebook_page() -> str:
    # Pictures stand in the page itself.
    exporter = MarkdownExporter(config=Config({"ExtractOutputPreprocessor": {"enabled": False}}))
    text, _ = exporter.from_filename(str(NOTEBOOK))
    return text.replace("![jpeg](", "![what the cell above draws](")


def run_notebook(folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in an empty folder; what the libraries log is left out.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (folder / "weights").symlink_to(ROOT / "weights")
    NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(run_notebook(Path(folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
