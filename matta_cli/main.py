"""The command line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from matta_cli.commands.adapters import adapters
from matta_cli.commands.convert import convert
from matta_cli.commands.demo import demo
from matta_cli.commands.distill import distill
from matta_cli.commands.doctor import doctor
from matta_cli.commands.eval import eval
from matta_cli.commands.export import export
from matta_cli.commands.inspect import inspect
from matta_cli.commands.push import push
from matta_cli.commands.recipe import app as recipe
from matta_cli.commands.report import report
from matta_cli.commands.search import search
from matta_cli.commands.teach import teach
from matta_cli.console import guarded, hint, say, text
from matta_cli.version import __version__

# the one of the click that this release of typer brings, or needs
_UsageError: Any = typer.BadParameter.__bases__[0]
_STOPPED = 130  # the code that typer makes of Ctrl-C


class _Commands(TyperGroup):
    """Says in one sentence what was typed wrong, too, with exit code 1."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            if code == _STOPPED and standalone_mode:  # outside of a command, which says so itself
                say("matta: Stopped before anything was begun.")
        except _UsageError as error:
            if not standalone_mode:
                raise
            sentence = " ".join(error.format_message().split())
            if not sentence:  # nothing was typed, and its help has been shown
                sys.exit(0)
            where = error.ctx.command_path if error.ctx is not None else "matta"
            say(f"Error: {sentence}{'' if sentence[-1] in '.?' else '.'} See `{where} --help`.")
            sys.exit(1)
        return sys.exit(code) if standalone_mode else code


app = typer.Typer(
    name="matta",
    cls=_Commands,
    help="Turn one dense PyTorch model into a family of good small ones.",
    epilog="Start with: matta convert model.pt --adapter gpt2, then matta distill --teacher "
    "gpt2-large, then matta export --widths 0.25,0.5,1.0. Or see it all at once: matta demo.",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_START = """\
matta turns one dense PyTorch model into a family of good small ones. In three lines, in one folder:

  matta convert model.pt --adapter gpt2    your model, with smaller ones (Students) nested in it
  matta distill --teacher gpt2-large       all of them are trained in one run, by a larger model
  matta export --widths 0.25,0.5,1.0       Students as ordinary checkpoints, and a report on each

It takes language models, encoders, vision models, rankers, and modules of your own. Then:

  matta export --target-params 60M         a Student for a budget: parameters, memory, time
  matta report --baselines plain           was it worth it?
  matta eval                               models, compared on the same examples
  matta push --to me/gpt2                  Students, sent to the Hugging Face hub

  matta demo      see it all on real text, without a network, in two minutes
  matta doctor    what is installed here
  matta --help    every command; `matta COMMAND --help` has its flags
"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"matta {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn one dense PyTorch model into a family of good small ones."""
    if context.invoked_subcommand is None:
        text(_START)
        hint("matta demo")


_FIRST = (convert, distill, export, inspect, search, eval)
_THEN = (report, push, teach, demo, adapters, doctor)
for _command in (*_FIRST, *_THEN):
    app.command()(guarded(_command))

app.add_typer(recipe, name="recipe")


def main() -> None:
    """Entry point of ``matta``."""
    # torchao, wherever it is installed, has torch warn here of its own future
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    app()
