"""The flags of the commands, and how what was typed becomes settings.

A flag that sets a setting is called and explained as the setting is, and the commands name its
parameter after the setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from matta_cli import console
from matta_cli.errors import MattaError, beside, command
from matta_cli.files.workspace import Workspace
from matta_cli.settings.recipe import SECTIONS, Recipe, about, called
from matta_cli.settings.resolve import resolve

OUT = Path("matta-out")
RUN, MEMORY, DEVICES, BUDGET = "Run", "Memory and speed", "Devices", "Budget"
LIST, NUMBERS = "A,B,...", "0.25,0.5,1.0"


def explained(setting: str) -> str:
    """What a setting is, as the sentence of its flag."""
    text = about(setting).told
    typed = text.partition(" ")[0][-1] in ",:"  # it begins with words to type
    return f"{text if typed else text[0].upper() + text[1:]}."


def flag(setting: str, words: str = "", *, panel: str | None = None, metavar: str = "") -> Any:
    """The option of a setting, ``distill.lr`` say, called as the setting is or by these words."""
    declared, help = (words or called(setting)).split(), explained(setting)
    return typer.Option(*declared, help=help, rich_help_panel=panel, metavar=metavar or None)


def option(words: str, help: str, *, panel: str | None = None, default: str | bool = True) -> Any:
    """An option that is no setting. default: what the help says stands where it is not given."""
    return typer.Option(*words.split(), help=help, rich_help_panel=panel, show_default=default)


# [convert]
Source = Annotated[str | None, typer.Argument(help=explained("convert.source"))]
Adapter = Annotated[str | None, flag("convert.adapter", "--adapter -a")]
Weights = Annotated[str | None, flag("convert.weights")]
Example = Annotated[str | None, flag("convert.example")]
AutoTask = Annotated[str | None, flag("convert.task")]
AimParams = Annotated[list[str] | None, flag("convert.target_params", panel=BUDGET)]
AimMemory = Annotated[list[str] | None, flag("convert.target_memory", panel=BUDGET)]
AimMacs = Annotated[list[str] | None, flag("convert.target_macs", panel=BUDGET)]
DropHead = Annotated[bool | None, flag("convert.drop_head", "--drop-head")]
TrimVocab = Annotated[bool | None, flag("convert.trim_vocab", "--trim-vocab")]
Expand = Annotated[float | None, flag("convert.expand")]
Axes = Annotated[str | None, flag("convert.axes", metavar=LIST)]
Order = Annotated[str | None, flag("convert.order")]
Tokenizer = Annotated[str | None, flag("convert.tokenizer")]

# [data]
Train = Annotated[str | None, flag("data.train")]
HeldOut = Annotated[str | None, flag("data.held_out")]
Passages = Annotated[str | None, flag("data.passages")]
SequenceLength = Annotated[int | None, flag("data.sequence_length")]
TrainOn = Annotated[str | None, flag("data.train_on")]

# [distill]
Preset = Annotated[str | None, flag("distill.preset")]
Teacher = Annotated[str | None, flag("distill.teacher", "--teacher -t")]
TeacherAdapter = Annotated[str | None, flag("distill.teacher_adapter")]
TeacherConfig = Annotated[str | None, flag("distill.teacher_config")]
TrainedWidths = Annotated[str | None, flag("distill.widths", metavar=NUMBERS)]
Steps = Annotated[int | None, flag("distill.steps")]
BatchSize = Annotated[int | None, flag("distill.batch_size")]
Lr = Annotated[float | None, flag("distill.lr")]
Optimizer = Annotated[str | None, flag("distill.optimizer")]
Seed = Annotated[int | None, flag("distill.seed")]
RankingLoss = Annotated[str | None, flag("distill.ranking_loss")]
AllowWeakTeacher = Annotated[bool | None, flag("distill.allow_weak_teacher")]
SaveEvery = Annotated[int | None, flag("distill.save_every", panel=RUN)]
EvalEvery = Annotated[int | None, flag("distill.eval_every", panel=RUN)]
Best = Annotated[float | None, flag("distill.best", panel=RUN)]
MaxBadSteps = Annotated[int | None, flag("distill.max_bad_steps", panel=RUN)]
LogTo = Annotated[str | None, flag("distill.log_to", panel=RUN, metavar=LIST)]
MicroBatch = Annotated[int | None, flag("distill.micro_batch", panel=MEMORY)]
Precision = Annotated[str | None, flag("distill.precision", panel=MEMORY)]
Checkpointing = Annotated[bool | None, flag("distill.checkpoint_activations", panel=MEMORY)]
Device = Annotated[str | None, flag("distill.device", panel=DEVICES)]
Shard = Annotated[bool | None, flag("distill.shard", "--shard/--no-shard", panel=DEVICES)]

# [export] and [search]
Widths = Annotated[str | None, flag("export.widths", metavar=NUMBERS)]
Format = Annotated[str | None, flag("export.format", metavar=LIST)]
Dtype = Annotated[str | None, flag("export.dtype")]
Quantize = Annotated[str | None, flag("export.quantize", metavar=LIST)]
Checkpoint = Annotated[str | None, flag("export.checkpoint")]
Margin = Annotated[float | None, flag("export.margin")]
Bootstrap = Annotated[int | None, flag("export.bootstrap")]
TargetParams = Annotated[list[str] | None, flag("export.target_params", panel=BUDGET)]
TargetLatency = Annotated[list[str] | None, flag("export.target_latency", panel=BUDGET)]
TargetPrefill = Annotated[list[str] | None, flag("export.target_prefill", panel=BUDGET)]
TargetMemory = Annotated[list[str] | None, flag("export.target_memory", panel=BUDGET)]
TargetMacs = Annotated[list[str] | None, flag("export.target_macs", panel=BUDGET)]
Batch = Annotated[int | None, flag("export.batch_size", panel=BUDGET)]
Threads = Annotated[int | None, flag("export.threads", panel=BUDGET)]
StockOnly = Annotated[bool | None, flag("search.stock_only", panel=BUDGET)]
Trials = Annotated[int | None, flag("search.trials", panel=BUDGET)]
Examples = Annotated[int | None, flag("search.examples", panel=BUDGET)]

# of several commands, and no settings
Folder = Annotated[
    Path | None, typer.Argument(help="Output folder of `matta convert`.", show_default=str(OUT))
]
Out = Annotated[Path, option("--out -o", "Output folder.")]
File = Annotated[Path | None, option("--config -c", "A recipe (TOML) instead of ./matta.toml.")]
Overwrite = Annotated[bool, option("--overwrite", "Replace finished work.")]
Name = Annotated[str, option("--name", "A family beside the first one.", default="none")]
Json = Annotated[bool, option("--json", "Print JSON on stdout instead of a table.")]
AtATime = Annotated[int | None, option("--batch-size", "Examples at a time.")]
Baselines = Annotated[
    str | None,
    option(
        "--baselines",
        "Train what Students are judged by: untrained,ground-truth,plain,scratch.",
        default="none",
    ),
]


def output(folder: Path | None, out: Path) -> Path:
    """The output folder, which may be an argument or ``--out``.

    Raises ``MattaError`` where these are two folders.
    """
    folder, out = home(folder) if folder is not None else None, home(out)
    if folder is not None and out not in (OUT, folder):
        which = "pass the one that `matta convert` made"
        raise MattaError(f"{folder} and --out {out} are two folders: {which}.")
    return folder or out


def home(path: Path) -> Path:
    """A path in which ``~`` is the user's home, as a shell has it where it is not quoted."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise MattaError(f"{str(path)!r} is in the home of a user who is not known.") from None


def tables(typed: Mapping[str, Any], *sections: str) -> dict[str, dict[str, Any]]:
    """A command's parameters as tables of settings; one goes to the first table that has it."""
    found: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for name, value in typed.items():
        having = [s for s in sections if name in SECTIONS[s].__dataclass_fields__]
        if having:
            if isinstance(value, str) and about(f"{having[0]}.{name}").several:
                value = parse_widths(value) if name == "widths" else words(value)
            found[having[0]][name] = value
    return found


def resolved(
    flags: Mapping[str, Mapping[str, Any]],
    out: Path | None,
    file: Path | None,
    ran: bool = False,
    exported: Workspace | None = None,
) -> Recipe:
    """The recipe of flags and files, which are named to the user; see ``resolve``."""
    file = None if file is None else home(file)
    recipe, read = resolve(flags, out, file, ran=ran, exported=exported)
    if read:
        console.say(f"Settings from {', '.join(map(str, read))}.")
    return recipe


def show_widths(widths: list[dict[str, Any]]) -> None:
    """A table of widths: what each comes to, and what it keeps of the base."""
    from matta_cli.conversion.inspect import numbers
    from matta_cli.report.numbers import percent

    nested = any(w["layers"] is not None for w in widths)  # else all keep all layers
    rows = []
    for w in widths:
        shares = [percent(w["kept"][name]) for name in ("parameters", "macs", "bytes")]
        own = [f"{w['width']:g}", w["role"], w["shown"], f"{w['parameters']:,}", *shares]
        rows.append([*own, *([numbers(w["layers"] or [])] if nested else []), w["loads"]])
    headers = ["width", "role", "sizes", "parameters", "kept", "MACs kept", "bytes kept"]
    headers += [*(["layers"] if nested else []), "loads with"]
    console.table(headers, rows, spare=["layers", "bytes", "loads with", "role"])
    if tokens := next((w["tokens"] for w in widths), None):
        console.say(f"MACs are those of an example of {tokens:,} tokens.")


def named(adapter: str | None) -> None:
    """Take it that the user, who typed where an adapter's code is, has named it on this machine."""
    if adapter:
        from matta_cli.models import plugins

        plugins.adapter(adapter)


def again(section: str, table: Mapping[str, Any]) -> list[str]:
    """The words that set these values of a table, to be typed once more.

    None sets nothing, and neither does a switch that is off.
    """
    found: list[str] = []
    for name, value in table.items():
        for one in value if isinstance(value, list) else [value]:
            if one is None or one is False:
                continue
            found += [called(f"{section}.{name}"), *([] if one is True else [str(one)])]
    return found


def following(out: Path, name: str = "") -> str:
    """The command that comes next in an output folder, by what is there. name: of a family."""
    space = Workspace(out)
    if not space.converted:
        return command("convert", "MODEL", *elsewhere(out))
    if space.newest() is None:
        return command("distill", out, "--teacher", "TEACHER")
    if not space.exported():
        return command("export", out)
    if not space.baselines.is_dir():
        return command("report", out, "--baselines", "plain", *beside(name))
    return command("eval", *beside(name), *elsewhere(out))


def elsewhere(out: Path) -> list[object]:
    """The words of a command that name an output folder, unless it is the usual one."""
    return ["--out", out] if out != OUT else []


def parse_widths(text: str) -> list[float]:
    """``0.25,0.5,1.0`` as numbers. Raises ``MattaError`` for anything else."""
    usual = "0.25,0.5,1.0"
    try:
        widths = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        wrong = "is not a list of numbers: write it as"
        raise MattaError(f"--widths {text!r} {wrong} {usual}.") from None
    if not widths or not all(0 < w < float("inf") for w in widths):
        wrong = "is not possible: every width must be a number above 0, such as"
        raise MattaError(f"--widths {text!r} {wrong} {usual}.")
    return widths


def words(text: str | None) -> list[str]:
    """``a,b`` as words; none of nothing."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
