"""The program `efficientformer`. Where this module is imported, the package brings Keras only when it is needed."""

import io
import os
import sys

VERBOSE = "--verbose"


def main(*command: str) -> None:
    """Runs the command line of this process, or the command `command` with its arguments.

    `--verbose`, wherever it stands, lets the libraries that the command uses say what they have to say.
    """
    # The module's own import must come before the package's.
    from keras_efficientformer import cli
    from keras_efficientformer.cli.quiet import keep_libraries_quiet

    if sys.stderr is None:  # closed by whoever started the command
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    # As on standard error: no report ends at a letter that the output's encoding has not, or a name that is no UTF-8.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if VERBOSE in sys.argv:
        sys.argv.remove(VERBOSE)
    else:
        keep_libraries_quiet()
    cli.main(*command)
