"""Run the command line: `python -m vartok`."""

import importlib

if __name__ == "__main__":  # spawned processes import this module again
    importlib.import_module("vartok.cli").app()
