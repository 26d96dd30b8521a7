"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matta_cli.errors import MattaError

Folder = Annotated[
    Path | None, typer.Argument(help="Output folder of `matta convert`.", show_default="matta-out")
]


Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]


Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="A recipe (TOML) instead of ./matta.toml.")
]


DataPath = Annotated[
    str | None, typer.Option("--data", help="Training data: file, folder or hub dataset id.")
]


HeldOut = Annotated[
    str | None, typer.Option("--held-out", help="Held-out data; default: the last tenth.")
]


Passages = Annotated[
    str | None,
    typer.Option("--passages", help="JSONL of passages for last-word accuracy (LAMBADA)."),
]


SequenceLength = Annotated[
    int | None, typer.Option("--sequence-length", help="Tokens per sequence.")
]


Baselines = Annotated[
    str | None,
    typer.Option(
        help="Train what Students are judged by: untrained,ground-truth,plain,scratch.",
        show_default="none",
    ),
]


Margin = Annotated[
    float | None, typer.Option(help="Share of a baseline's value that a Student may lose: 0.01.")
]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace finished work.")]


Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N, auto.")]


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]


_BUDGET = "Budget"


_target = lambda flag, help: typer.Option(flag, help=help, rich_help_panel=_BUDGET)  # noqa: E731


TargetParams = Annotated[
    list[str] | None, _target("--target-params", "Most parameters, as 60M; repeat it for a family.")
]


TargetLatency = Annotated[
    list[str] | None, _target("--target-latency", "Most time of a forward on this machine, as 5ms.")
]


TargetMemory = Annotated[
    list[str] | None, _target("--target-memory", "Most bytes of weights, as 200MB.")
]


TargetMacs = Annotated[
    list[str] | None, _target("--target-macs", "Most multiply-accumulates of an example, as 3G.")
]


Batch = Annotated[
    int | None,
    typer.Option("--batch", help="Batch that latency is measured at.", rich_help_panel=_BUDGET),
]


Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads for latency.", rich_help_panel=_BUDGET)
]


StockOnly = Annotated[
    bool,
    typer.Option(
        "--stock-only", help="Only what the stock library loads.", rich_help_panel=_BUDGET
    ),
]


Sizes = Annotated[
    str | None, typer.Option("--sizes", help="auto, trained or any.", rich_help_panel=_BUDGET)
]


Trials = Annotated[
    int | None,
    typer.Option("--trials", help="Sizes to try for each budget.", rich_help_panel=_BUDGET),
]


Examples = Annotated[
    int | None,
    typer.Option(
        "--examples", help="Held-out examples to choose by; 0: few.", rich_help_panel=_BUDGET
    ),
]


Checkpoint = Annotated[
    str | None, typer.Option(help="best, last or step-N.", show_default="the best, if kept")
]


def output(folder: Path | None, out: Path) -> Path:
    """The output folder, which may be an argument or ``--out``. Raises ``MattaError`` where these
    are two folders.
    """
    if folder is not None and out not in (Path("matta-out"), folder):
        raise MattaError(
            f"{folder} and --out {out} are two folders: pass the one that `matta convert` made."
        )
    return folder or out


def targets(
    params: list[str] | None,
    latency: list[str] | None,
    memory: list[str] | None,
    macs: list[str] | None,
) -> dict[str, list[str] | None]:
    """The [export] table of the target flags."""
    return {
        "target_params": params,
        "target_latency": latency,
        "target_memory": memory,
        "target_macs": macs,
    }


def search_flags(
    stock_only: bool, sizes: str | None, trials: int | None, examples: int | None
) -> dict[str, object]:
    """The [search] table of the flags."""
    return {
        "stock_only": stock_only or None,
        "sizes": sizes,
        "trials": trials,
        "examples": examples,
    }


def parse_widths(text: str | None) -> list[float] | None:
    """``0.25,0.5,1.0`` as numbers. Raises ``MattaError`` for anything else."""
    if text is None:
        return None
    try:
        widths = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise MattaError(
            f"--widths {text!r} is not a list of numbers: write it as 0.25,0.5,1.0."
        ) from None
    if not widths or not all(0 < w < float("inf") for w in widths):
        raise MattaError(
            f"--widths {text!r} is not possible: every width must be a number above 0, such as 0.25,0.5,1.0."
        )
    return widths


def words(text: str | None) -> list[str] | None:
    """``a,b`` as words."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def span(found: list[int]) -> str:
    """``64`` or ``32..64``."""
    low, high = min(found), max(found)
    return f"{low}" if low == high else f"{low}..{high}"


def data_flags(
    data: str | None,
    held_out: str | None,
    passages: str | None = None,
    sequence_length: int | None = None,
) -> dict[str, str | int | None]:
    """The [data] table of the data flags."""
    return {
        "train": data,
        "held_out": held_out,
        "passages": passages,
        "sequence_length": sequence_length,
    }
