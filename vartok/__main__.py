"""`python -m vartok`."""

import importlib

importlib.import_module("vartok.cli").app()
