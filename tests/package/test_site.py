"""The documentation site is built as `make docs` builds it, and says what the package has; its tutorial runs."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import zlib

import nbformat
import pytest
import typer
from commands import command_options
from project import HANG, ROOT
from test_public_names import PUBLIC

from keras_efficientformer import cli
from keras_efficientformer.cli.on_demand import imported

sys.path.append(str(ROOT / "docs" / "hooks"))
from benchmark_tables import figure
from error_list import error_list
from notebook_page import NOTEBOOK, run_notebook
from repository import headings

PACKAGE = ROOT / "keras_efficientformer"
RESULTS = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()
# Elements that a browser fetches without being asked.
FETCHED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(https?:[^"' >]+)""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site. mkdocs ends with an error where it has a warning: `--strict`."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=HANG, **streams)
    assert done.returncode == 0, done.stdout
    return folder


def test_every_public_name_is_in_the_reference(site):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    # "keras_efficientformer.EfficientFormerL1 py:function 1 api/models.html#$ -"
    places = {line.split()[0]: line.split()[3].replace("$", line.split()[0]) for line in inventory.splitlines()}
    expected = {f"{module}.{name}" for module, names in PUBLIC.items() for name in names}
    assert expected - places.keys() == set()
    pages = {place.partition("#")[0] for place in places.values()}
    texts = {page: (site / page).read_text() for page in pages}
    for name in expected:
        page, _, anchor = places[name].partition("#")
        assert f'id="{anchor}"' in texts[page], name


def test_every_command_is_in_the_reference(site):
    page = (site / "api" / "command.html").read_text()
    waiting = [("efficientformer", imported(typer.main.get_command(cli.app)))]
    for name, command in waiting:
        waiting += [(f"{name} {inner}", found) for inner, found in getattr(command, "commands", {}).items()]
        for parameter in command.params:
            if not parameter.hidden and parameter.param_type_name == "option":
                assert parameter.opts[0] in page, (name, parameter.opts)
    assert len(waiting) > 10
    for name, _ in waiting[1:]:
        assert f"<code>{name}</code>" in page


def test_every_result_has_a_table(site):
    page = (site / "benchmarks.html").read_text()
    for name in RESULTS:
        part = page.partition(f'id="{name}"')[2].partition("<h2")[0]
        assert "</table>" in part, name
        assert f'href="files/benchmarks/results/{name}.json"' in part
    # A figure of each kind, as the JSON has it.
    modes = json.loads((ROOT / "benchmarks" / "results" / "tflite_modes.json").read_text())["modes"]
    size, top1 = modes["int8"]["bytes"], modes["int8"]["top1"]
    assert figure("tflite_modes", "modes/int8/bytes") == f"{size / 1e6:.1f} MB"
    row = page.partition('id="tflite_modes"')[2].partition("<td>int8</td>")[2].partition("</tr>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert cells[0] == f"{size / 1e6:.1f}"
    assert cells[-1] == f"{top1:.2f}"


def test_pages_fetch_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        assert FETCHED.findall(page.read_text()) == [], page.name
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(), style.name


def test_headings_of_a_document_are_its_pages(site):
    """A document is shown to its end, with the anchors that GitHub gives its headings."""
    for document, page in (("tflite/README.md", "how-to/tflite.html"), ("coreml/README.md", "how-to/coreml.html")):
        found = headings((ROOT / document).read_text())
        text = (site / page).read_text()
        assert len(found) >= 5
        assert [heading.anchor for heading in found if f'id="{heading.anchor}"' not in text] == []


def test_each_kind_of_error_is_explained():
    kinds = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Error") for base in node.bases)
    }
    assert {"CheckpointError", "ExportError", "DeviceError"} <= kinds
    assert {kind for kind in kinds if f"`{kind}`" not in TROUBLESHOOTING} == set()


def test_messages_are_quoted_as_they_are():
    """Every quotation on the page of troubles is found in the package's sources."""
    texts = [
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    sources = "\n".join(texts) + error_list().replace("\\", "")
    quotations = re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", TROUBLESHOOTING)
    pieces = [piece.strip(" .:,'") for quotation in quotations for piece in quotation.split("…")]
    assert len(quotations) > 30
    assert [piece for piece in pieces if piece not in sources] == []


def test_the_tutorial_names_commands_that_exist():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    texts = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = [shlex.split(line) for line in re.findall(r"^efficientformer (.+)$", texts, re.MULTILINE)]
    assert len(found) >= 10
    for words in found:
        assert {word for word in words if word.startswith("--")} <= command_options(words), words


def test_the_tutorial_runs(tmp_path):
    run, kept = run_notebook(tmp_path), nbformat.read(NOTEBOOK, as_version=4)

    def printed(notebook):
        return "".join(o.text for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "text" in o)

    text = printed(run)
    epochs = [float(share) for share in re.findall(r"held-out accuracy (.+)%", text)]
    files = {name: float(share) for name, share in re.findall(r"^(.+): (.+)% of 80", text, re.MULTILINE)}
    assert epochs[-1] >= 60  # chance is 20
    assert files["best.keras"] == max(epochs)
    assert files["photos.tflite"] >= files["best.keras"] - 10
    assert (tmp_path / "tutorial" / "run" / "report.html").exists()
    # What is kept are the outputs of these cells, in the same words.
    assert re.sub(r"[\d.]+", "0", printed(kept)) == re.sub(r"[\d.]+", "0", text)
    assert len(re.findall("image/jpeg", NOTEBOOK.read_text())) == 1
