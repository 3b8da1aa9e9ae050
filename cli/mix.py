"""`vartok mix`: joins the coarse scales of one picture with the fine ones of another."""

from __future__ import annotations

from typing import Annotated

import typer

from vartok.errors import ArgumentError, counted, printable

from .command import command
from .files import STDIO, output_name, parse_output, protect_inputs
from .messages import say
from .options import DebugOption, ForceOption


@command
def mix(
    coarse: Annotated[str, typer.Argument(metavar="A", help="Token file whose first scales are taken.")],
    fine: Annotated[str, typer.Argument(metavar="B", help="Token file whose other scales are taken.")],
    scales: Annotated[
        int, typer.Option("--scales", metavar="K", min=1, help="Number of scales that are taken from A.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            parser=output_name,
            help="Token file to write: .npz, .json or .jsonl; - for stdout.",
        ),
    ],
    *,
    force: ForceOption = False,
    debug: DebugOption = False,
) -> None:
    """Join the first K scales of picture A with the other scales of picture B.

    Both must have the same codebook and schedule. Decoded, the picture has the layout and colours
    of A and the details of B.

    Examples:
      vartok mix a.tokens.npz b.tokens.npz --scales 7 -o mixed.npz
      vartok mix a.tokens.npz b.tokens.npz --scales 1 -o mixed.json
    """
    from vartok.operations.mix import mix_tokens
    from vartok.operations.outputs import write_stream
    from vartok.token_files import dump_npz, save_tokens
    from vartok.token_sources import load_tokens

    target = parse_output(output, [], binary="use -o FILE")
    if output != STDIO and not output.lower().endswith((".npz", ".json", ".jsonl")):
        raise ArgumentError(f"-o {printable(output)}: the name must end in .npz, .json or .jsonl")
    protect_inputs(output, [coarse, fine])
    tokens = mix_tokens(load_tokens(coarse), load_tokens(fine), scales)
    if target is None or isinstance(target, str):
        save_tokens(tokens, output, overwrite=force)
        rest = len(tokens.scales) - scales
        first = counted(scales, "scale")
        say(f"{first} of {printable(coarse)} and {rest} of {printable(fine)} in {printable(output)}")
    else:
        write_stream(target, dump_npz(tokens))
