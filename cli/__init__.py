"""The command line, a Typer app: each command parses arguments, calls the library, and prints the result."""

from __future__ import annotations

from typing import Annotated

import typer

from .command import Command, Group
from .convert import convert
from .dataset import app as dataset
from .decode import decode
from .diff import diff
from .encode import encode
from .env import env
from .eval import eval
from .export import export
from .inspect import inspect
from .inspect_codebook import inspect_codebook
from .messages import print_result
from .mix import mix
from .models import app as models
from .schedules import schedules
from .show import show
from .train import train

app = typer.Typer(
    name="vartok",
    cls=Group,
    epilog="vartok COMMAND --help shows a command's options and examples.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    encode,
    decode,
    show,
    inspect,
    diff,
    mix,
    inspect_codebook,
    schedules,
    eval,
    train,
    convert,
    export,
    env,
):
    app.command(name=command.__name__.replace("_", "-"), cls=Command)(command)
app.add_typer(models, name="models", help="List, fetch or find known checkpoints.")
app.add_typer(dataset, name="dataset", help="Build, verify or export a data set of tokens.")


def _show_version(wanted: bool) -> None:
    if wanted:
        import vartok

        print_result(f"vartok {vartok.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Turn images into the tokens of VAR's multi-scale tokenizer and back."""
