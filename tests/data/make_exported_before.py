"""Writes the fixtures of test_same_files.py: the hashes of what exports give, and networks where there are none yet.

The networks were saved by the version at commit 249a86f and stay as they are. The hashes are written anew, in the same
commit, by a change that is meant to change exported files. The weights, the images and the list of exports are the
test's own:

    PYTHONPATH=.:tests KERAS_BACKEND=tensorflow python tests/data/make_exported_before.py

Every export is made in two processes, in the second one in the opposite order: what differs between them is printed and
left out, since no version could be tested by it.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
from test_same_files import DATA, EXPORTS, FAMILIES, RECORD, exported, network, predicted, processor, versions

import keras_efficientformer


def save(model, path):
    """Saves a model as Keras does, then compresses the archive: half of it is empty space inside HDF5."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(plain := Path(folder) / path.name)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
            for name in source.namelist():
                out.writestr(name, source.read(name))


def export_all(order):
    """{family: {export: its hashes}}, made in this order, 1 or -1, by this process."""
    found = {}
    for family in FAMILIES[::order]:
        model = keras.saving.load_model(DATA / f"before_{family}.keras")
        found[family] = {}
        for target, name in EXPORTS[::order]:
            with tempfile.TemporaryDirectory() as folder:
                found[family][f"{target} {name}"] = exported(model, target, name, Path(folder))
    return found


def export_in_a_process(order):
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "hashes.json"
        subprocess.run([sys.executable, __file__, str(order), str(result)], check=True)
        return json.loads(result.read_text())


def main():
    assert Path(keras_efficientformer.__file__).parents[1] == DATA.parents[1], "another checkout's package is imported"
    if len(sys.argv) == 3:
        Path(sys.argv[2]).write_text(json.dumps(export_all(int(sys.argv[1]))))
        return
    outputs = {}
    for family in FAMILIES:
        path = DATA / f"before_{family}.keras"
        if not path.exists():
            save(network(family), path)
        outputs[family] = [
            [[round(float(x), 7) for x in row] for row in output] for output in predicted(network(family))
        ]
        print(path.name, path.stat().st_size, "bytes")
    first, second = export_in_a_process(1), export_in_a_process(-1)
    files = {}
    for family in FAMILIES:
        files[family] = {name: hashes for name, hashes in first[family].items() if second[family][name] == hashes}
        for name, hashes in first[family].items():
            if name not in files[family]:
                print("differs between two processes:", family, name, hashes, second[family][name])
    record = {"versions": versions(), "processor": processor(), "outputs": outputs, "files": files}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
