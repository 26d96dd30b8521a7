"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matta_cli.errors import MattaError

Folder = Annotated[Path | None, typer.Argument(help="Output folder of `matta convert`.", show_default="matta-out")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="A recipe (TOML) instead of ./matta.toml.")]
DataPath = Annotated[str | None, typer.Option("--data", help="Training data: file, folder or hub dataset id.")]
HeldOut = Annotated[str | None, typer.Option("--held-out", help="Held-out data; default: the last tenth.")]
Passages = Annotated[str | None, typer.Option("--passages", help="JSONL of passages for last-word accuracy (LAMBADA).")]
SequenceLength = Annotated[int | None, typer.Option("--sequence-length", help="Tokens per sequence.")]
Baselines = Annotated[
    str | None,
    typer.Option(help="Train what Students are judged by: untrained,base,plain,scratch.", show_default="none"),
]
Margin = Annotated[float | None, typer.Option(help="Share of a baseline's value that a Student may lose: 0.01.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace finished work.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]


def parse_widths(text: str | None) -> list[float] | None:
    """``0.25,0.5,1.0`` as numbers. Raises ``MattaError`` for anything else."""
    if text is None:
        return None
    try:
        widths = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise MattaError(f"--widths {text!r} is not a list of numbers: write it as 0.25,0.5,1.0.") from None
    if not widths or not all(0 < w < float("inf") for w in widths):
        raise MattaError(f"--widths {text!r} is not possible: every width must be a number above 0, such as 0.25,0.5,1.0.")
    return widths


def words(text: str | None) -> list[str] | None:
    """``a,b`` as words."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def span(found: list[int]) -> str:
    """``64`` or ``32..64``."""
    low, high = min(found), max(found)
    return f"{low}" if low == high else f"{low}..{high}"


def data_flags(
    data: str | None, held_out: str | None, passages: str | None = None, sequence_length: int | None = None
) -> dict[str, str | int | None]:
    """The [data] table of the data flags: other data brings no hub configuration from a file along."""
    flags: dict[str, str | int | None] = {
        "train": data,
        "held_out": held_out,
        "passages": passages,
        "sequence_length": sequence_length,
    }
    if data is not None:
        flags |= {"config": "", "held_out": held_out or ""}
    return flags


def command_line(*words: object) -> str:
    """A command to show, with the default folder left out."""
    return " ".join(str(w) for w in ("matta", *words) if str(w) and str(w) != "matta-out")
