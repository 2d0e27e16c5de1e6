"""The program `efficientformer`. Where this module is imported, the package brings Keras only when it is needed."""

import sys

VERBOSE = "--verbose"


def main(*command: str) -> None:
    """Runs the command line of this process, or the command `command` with its arguments.

    `--verbose`, wherever it stands, lets the libraries that the command uses say what they have to say.
    """
    # The module's own import must come before the package's.
    from keras_efficientformer import cli
    from keras_efficientformer.cli.quiet import keep_libraries_quiet

    if VERBOSE in sys.argv:
        sys.argv.remove(VERBOSE)
    else:
        keep_libraries_quiet()
    cli.main(*command)
