"""What runs the checks: make, pre-commit and GitHub's workflow run the same commands, and all of them are there."""

import os
import runpy
import subprocess

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from project import HANG, ROOT

GITHUB = ROOT / ".github"
INSTALLED = ("--old-file=.venv/.test-installed", "--old-file=.venv/.docs-installed")
YAML = sorted(path for path in GITHUB.rglob("*.y*ml"))


def read(path):
    return yaml.safe_load(path.read_text())


def commands(target):
    """What `make` would run for a target where everything is installed."""
    command = ["make", "--dry-run", "--no-print-directory", *INSTALLED, "VENV=.venv", target]
    # An outer make passes its own options and variables in this one.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES")}
    return subprocess.check_output(command, cwd=ROOT, env=environment, text=True, timeout=HANG).splitlines()


def test_pre_commit_runs_what_make_lint_runs():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == commands("lint")
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False


def test_make_quick_covers_each_room():
    (command,) = commands("quick")
    chosen = [argument for argument in command.split() if argument.startswith("tests/")]
    rooms = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("*/test_*.py")}
    assert rooms <= {path.split("/")[1] for path in chosen}
    for path, _, function in (argument.partition("::") for argument in chosen):
        assert (ROOT / path).exists(), path
        assert not function or f"def {function}(" in (ROOT / path).read_text(), function


def test_make_dist_checks_what_it_builds():
    assert commands("dist") == [
        "rm -rf build dist",
        ".venv/bin/python -m build",
        ".venv/bin/twine check --strict dist/*",
        ".venv/bin/check-wheel-contents dist",
    ]


def test_make_docs_takes_warnings_for_errors():
    assert commands("docs") == ["NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict"]


def test_github_has_yaml():
    assert {path.parent.name for path in YAML} == {"workflows", "ISSUE_TEMPLATE"}


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_github_yaml(path):
    content = read(path)
    assert content["name"]
    if path.parent.name == "ISSUE_TEMPLATE":
        assert content["description"]
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)


def test_workflow(monkeypatch):
    workflow = read(GITHUB / "workflows" / "tests.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    # YAML 1.1 takes the key `on` for True.
    assert set(workflow[True]) == {"push", "pull_request"}

    jobs = workflow["jobs"]
    assert not any("permissions" in job for job in jobs.values())
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs["all"][-1] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert runs["quick"] == ["make quick"]
    assert runs["docs"] == ["make docs"]
    matrix = jobs["quick"]["strategy"]["matrix"]
    assert matrix["backend"] == ["tensorflow", "jax", "torch"]
    assert jobs["quick"]["env"] == {"KERAS_BACKEND": "${{ matrix.backend }}"}

    setups = [step["with"] for job in jobs.values() for step in job["steps"] if "setup-python" in step.get("uses", "")]
    asked = {setup["python-version"] for setup in setups}
    assert asked == {"3.11", "${{ matrix.python }}"}
    facts = {}
    monkeypatch.setattr("setuptools.setup", facts.update)
    runpy.run_path(str(ROOT / "setup.py"))
    supported = {name.removeprefix("Programming Language :: Python :: ") for name in facts["classifiers"]}
    for version in ["3.11", *matrix["python"]]:
        assert version in supported
        assert version in SpecifierSet(facts["python_requires"])
