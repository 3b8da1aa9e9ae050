"""`python -m vartok`."""

import importlib

if __name__ == "__main__":  # a process that is spawned imports this again
    importlib.import_module("vartok.cli").app()
