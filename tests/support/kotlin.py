"""Type-checks the Kotlin of an Android project: by its compiler, against stubs of the libraries' signatures."""

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import HANG, ROOT

STUBS = ROOT / "tests" / "apps" / "kotlin" / "stubs"
PACKAGE = "org.example.efficientformer"
ANDROID = "{http://schemas.android.com/apk/res/android}"


def compiled(main: Path, *more: Path, target: Path) -> Path:
    """The folder with the classes of a project; a test that asks is skipped where there is no compiler.

    Args:
        main: the project's folder `app/src/main`.
        more: further sources.
        target: a folder to write to.
    """
    libraries = _libraries()
    if not libraries.is_dir() or shutil.which("java") is None:
        pytest.skip("needs the Kotlin compiler: bash tests/apps/kotlin/setup.sh")
    generated = target / "Generated.kt"
    generated.write_text("\n".join(resources(main)))
    binding = target / "Binding.kt"
    binding.write_text("\n".join(view_binding(main / "res" / "layout" / "activity_main.xml")))
    classes = target / "classes"
    command = [
        # The compiler runs for seconds: what makes Java fast later does not pay.
        *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx1g", "-cp", libraries / "kotlin-compiler.jar"),
        *("org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror", "-Wextra", "-jvm-target", "17"),
        *("-no-stdlib", "-no-reflect", "-cp"),
        f"{libraries / 'kotlin-stdlib.jar'}{os.pathsep}{libraries / 'kotlinx-coroutines-core-jvm.jar'}",
        *("-d", classes, STUBS, main / "java", generated, binding, *more),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return classes


def run_class(classes: Path, name: str) -> str:
    """What the `main` of a compiled class of the app's package prints."""
    path = f"{classes}{os.pathsep}{_libraries() / 'kotlin-stdlib.jar'}"
    done = subprocess.run(
        ["java", "-XX:TieredStopAtLevel=1", "-cp", path, f"{PACKAGE}.{name}"],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _libraries() -> Path:
    folder = Path(os.environ.get("EFFICIENTFORMER_KOTLIN") or "~/.cache/keras_efficientformer/kotlin").expanduser()
    return folder / "node_modules" / "kotlin-compiler" / "lib"


def resources(main: Path) -> Iterator[str]:
    """The class `R` that Android's tools make of a project's resources, as far as code names them."""
    yield f"package {PACKAGE}\n\nobject R {{"
    for kind in ("string", "array", "color"):
        names = [item.get("name") for file in (main / "res").rglob("*.xml") for item in named(file, kind)]
        yield f"    object {kind} {{"
        yield from (f"        const val {name} = {number}" for number, name in enumerate(names))
        yield "    }"
    yield "}"


def named(file: Path, kind: str) -> Iterator[ElementTree.Element]:
    return (item for item in ElementTree.parse(file).iter(kind) if item.get("name"))


def view_binding(layout: Path) -> Iterator[str]:
    """The class that Android's tools make of a layout: its views that have an id."""
    root = ElementTree.parse(layout).getroot()
    views = {view.get(f"{ANDROID}id", "").removeprefix("@+id/"): view.tag for view in root.iter()}
    yield f"package {PACKAGE}.databinding\n\nimport android.view.LayoutInflater\nimport android.widget.*\n"
    yield f"class ActivityMainBinding private constructor(\n    val root: {root.tag},"
    yield from (f"    val {name}: {kind}," for name, kind in views.items() if name)
    yield ") {\n    companion object {"
    yield "        fun inflate(inflater: LayoutInflater): ActivityMainBinding = throw NotImplementedError()"
    yield "    }\n}"


def in_class_file(text: str) -> bytes:
    """A text as class files hold it: UTF-8 of its UTF-16 units."""
    units = text.encode("utf-16-be")
    pairs = (units[start : start + 2] for start in range(0, len(units), 2))
    return "".join(chr(int.from_bytes(pair)) for pair in pairs).encode("utf-8", "surrogatepass")
