"""Run the command line: `python -m vartok`, and the program `vartok`."""

import importlib

from vartok import stopping


def main() -> None:
    """Run the command line, and exit. Ctrl-C ends it in one line from the first import on."""
    stopping.install()
    try:
        importlib.import_module("vartok.cli").app()
    finally:
        # Only Python's own shutdown is left.
        stopping.stop.describe_progress = lambda: "nothing was left to do"


if __name__ == "__main__":  # spawned processes import this module again
    main()
