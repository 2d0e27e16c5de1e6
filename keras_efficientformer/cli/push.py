"""The command `efficientformer push`: publishes a model on the Hugging Face hub. Room: cli."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from keras_efficientformer import sharing
from keras_efficientformer.cli.options import Json, check_inputs, print_facts, say
from keras_efficientformer.cli.quiet import import_keras_alone
from keras_efficientformer.errors import require_installed
from keras_efficientformer.files import check_target
from keras_efficientformer.sharing.export_reports import read_reports
from keras_efficientformer.sharing.finished_runs import read_finished_run
from keras_efficientformer.sharing.upload import check_repo_id, check_token


def push(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run of finetune; a .keras or checkpoint file.")
    ],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository, which is made if need be.")],
    exports: Annotated[
        list[Path] | None,
        typer.Option("--export", help="A .tflite or .mlpackage file of this model, with its report; several times."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only its owner may see a new repository.")] = False,
    license: Annotated[
        str | None,
        typer.Option(
            help="As the hub calls it, e.g. mit. Default: apache-2.0 of runs from published weights, else none."
        ),
    ] = None,
    dry_run: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write what would be uploaded into a new folder instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish a model on the Hugging Face hub: weights that timm reads too, .keras, checked exports and a card."""
    check_inputs(source, *(exports or ()))
    check_repo_id(repo_id)
    if dry_run and dry_run.exists():
        raise FileExistsError(f"{dry_run} exists, and --dry-run writes a new folder. Choose another name.")
    check_target(dry_run, overwrite=False) if dry_run else check_token(None)
    require_installed("jinja2", "A model's card", "train")
    read_reports(exports or ())
    if source.is_dir():
        read_finished_run(source)
    else:
        check_inputs(str(source))
    import_keras_alone()
    done: sharing.Repository | sharing.Upload
    if dry_run:
        done = sharing.write_repository(source, repo_id, dry_run, exports=exports or (), license=license)
    else:
        done = sharing.push(source, repo_id, exports=exports or (), private=private, license=license)
    facts = dataclasses.asdict(done) | {"bytes": sum(done.files.values())}
    print_facts(facts, as_json, f"Written for {repo_id}" if dry_run else f"Published as {repo_id}")
    if done.license is None:
        say("No licence is stated, so that others may not use it: pass --license.")
