"""``matta eval``: any models of one task, measured and compared on the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError
from matta_cli.settings.resolve import resolve


def eval(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER...",
            help="Students, TAs (FOLDER, or FOLDER@0.5 for a width), Teachers, bases: folders, hub ids, timm names.",
            show_default="the base and the Students in --out",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Which of them the others are compared with.", show_default="the first"),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", "-t", help="A Teacher to agree with or not.")
    ] = None,
    ta: Annotated[
        str | None,
        typer.Option(
            "--ta", help="The TA to agree with or not.", show_default="that of the models"
        ),
    ] = None,
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples at a time.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples of intervals and p-values.")] = 1000,
    task: Annotated[
        str | None, typer.Option(help="What the models are for, where they do not say.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, such as lambada_openai.")
    ] = None,
    task_data: Annotated[
        list[str] | None,
        typer.Option(help="A local file of a task's examples: lambada_openai=FILE.jsonl."),
    ] = None,
    task_limit: Annotated[int, typer.Option(help="Examples of each of the --tasks; 0: all.")] = 0,
    speculative: Annotated[
        str | None, typer.Option(help="SMALL,LARGE: generate with one drafting for the other.")
    ] = None,
    draft_tokens: Annotated[int, typer.Option(help="Tokens that SMALL drafts at a time.")] = 5,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Ask a larger model only where a smaller is unsure.")
    ] = False,
    unsure: Annotated[
        str, typer.Option(help="By what a model is unsure: confidence or margin.")
    ] = "confidence",
    device: options.Device = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Measure models with intervals, and compare them on the same examples.

    Example: matta eval matta-out@0.5 matta-out/students/width-0.5 gpt2 --held-out test.txt
    """
    if bootstrap < 1:
        raise MattaError(f"--bootstrap {bootstrap} is not possible: it takes 1 resample or more.")
    if task_limit < 0:
        raise MattaError(
            f"--task-limit {task_limit} is not possible: it is a number of examples, 0 for all of them."
        )
    flags: dict[str, dict[str, Any]] = {
        "export": {"bootstrap": bootstrap},
        "distill": {"device": device, "batch_size": batch_size},
        "data": options.data_flags(data, held_out, passages, sequence_length),
    }
    from matta_cli.comparison import compare, subjects

    out = subjects.home(folders or [], out)
    recipe, read = resolve(flags, out, config, ran=True)
    for path in read:
        console.say(f"Settings from {path}.")
    pair = options.words(speculative) or []
    asked = compare.Asked(
        models=folders or ([] if pair else subjects.students_of(out)),
        task=task or "",
        against=against or "",
        ta=ta or "",
        teacher=teacher or "",
        speculative=pair,
        draft_tokens=draft_tokens,
        cascade=cascade,
        unsure=unsure,
        tasks=options.words(tasks) or [],
        task_data=_files(task_data or []),
        task_limit=task_limit,
    )
    for name in subjects.chosen_by(asked.models):
        console.say(
            f"Note: {name} was chosen on a half of the run's held-out examples: measured on these, it looks too good."
        )
    result = compare.evaluation(recipe, asked, out, say=console.say)
    if json:
        console.data(result)
    else:
        _show(result)


def _files(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not name or not equals or not path:
            raise MattaError(
                f"--task-data {text!r} is not understood: write it as lambada_openai=FILE.jsonl."
            )
        found[name] = path
    return found


def _show(result: dict[str, Any]) -> None:
    """The tables, one after the other, with an empty line between them."""
    metrics, models = result["metrics"], result["models"]
    agreement = {
        key: name
        for key, name in (("ta", "TA"), ("teacher", "Teacher"))
        if key in result["agreement"]
    }
    headers = [
        "model",
        "parameters",
        "MACs",
        *(m["label"] for m in metrics),
        *(f"agrees with {n}" for n in agreement.values()),
    ]
    rows = [
        [
            m["name"],
            f"{m['parameters']:,}",
            f"{m['macs']:,}",
            *(_interval(m["metrics"].get(k["name"])) for k in metrics),
            *(_interval(m["agreement"].get(key)) for key in agreement),
        ]
        for m in models
    ]
    console.table(headers, rows, spare=["MACs", "parameters"])
    if agreement:
        console.say(f"Agreement is the share of {result['agreement']['of']}.")
    rows = [
        [m["name"], k["label"], _interval(d, sign=True), _p(d["p"]), _p(d["p_holm"]), d["test"]]
        for m in models
        for k in metrics
        if (d := m["differences"].get(k["name"]))
    ]
    if rows:
        console.text("\n")
        console.table(
            ["model", "metric", f"less {result['against']}", "p", "p (Holm)", "test"], rows
        )
    rows = [
        [
            m["name"],
            task,
            name,
            f"{v['value']:.4g}",
            "-" if v["stderr"] is None else f"{v['stderr']:.2g}",
            *(
                (_interval(d, sign=True), _p(d["p_holm"]))
                if (d := found["differences"].get(name))
                else ("-", "-")
            ),
        ]
        for m in models
        for task, found in m.get("tasks", {}).items()
        for name, v in found["metrics"].items()
    ]
    if rows:
        console.text("\n")
        headers = [
            "model",
            "task",
            "metric",
            "value",
            "standard error",
            f"less {result['against']}",
            "p (Holm)",
        ]
        console.table(headers, rows)
    for found in result.get("cascade", []):
        _show_cascade(found, metrics[0])
    if "speculative" in result:
        _show_speculative(result["speculative"])


def _show_cascade(found: dict[str, Any], metric: dict[str, Any]) -> None:
    small, large = found["models"]
    own = found["macs"]
    rows = [[small, "-", "0%", f"{own['small']:,}", f"{found['small'][metric['name']]:.4f}"]]
    rows += [
        [
            "cascade",
            f"{p['threshold']:.4f}",
            f"{p['passed_on']:.0%}",
            f"{p['macs']:,.0f}",
            f"{p['metrics'][metric['name']]:.4f}",
        ]
        for p in found["curve"]
    ]
    rows += [[large, "-", "100%", f"{own['large']:,}", f"{found['large'][metric['name']]:.4f}"]]
    console.text("\n")
    console.table(
        [f"{small}, then {large}", found["unsure"], "passed on", "MACs", metric["label"]], rows
    )
    best = found["chosen"]
    if best["kind"] == "cascade":
        what = f"the threshold {best['threshold']:.4f}"
    elif best["kind"] == "small alone":
        what = "the smaller model alone, which was as good there"
    else:
        what = "the larger model alone, as good as which nothing cheaper was there"
    difference = best["against"]["large"][metric["name"]]
    console.say(
        f"Chosen on {found['examples']['chosen_on']:,} examples: {what}. On the other {found['examples']['measured_on']:,}: "
        f"{metric['label']} {_interval(best['metrics'][metric['name']])} at {best['macs'] / own['large']:.0%} of the larger "
        f"model's MACs; less the larger model's {_interval(difference, sign=True)}, p {_p(difference['p'])}."
    )


def _show_speculative(found: dict[str, Any]) -> None:
    speed, ratio = found["tokens_per_second"], found["ratio"]
    rows = [
        ["acceptance", f"{found['acceptance']:.1%} of {found['proposed']:,} drafted tokens"],
        ["tokens per call of the larger", f"{found['tokens_per_call']:.2f}"],
        ["tokens/s, drafted", f"{speed['drafted']:,.1f}"],
        ["tokens/s, alone", f"{speed['alone']:,.1f}"],
        ["ratio", f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"],
        ["same output", f"{found['identical']:.0%} of {found['prompts']} prompts"],
    ]
    console.text("\n")
    console.table([f"{found['small']} drafts for {found['large']}", ""], rows, left=True)
    if found["identical"] < 1:
        console.say(
            "Greedy outputs differ where two tokens are equally likely up to rounding: checking drafts is another batch."
        )


def _interval(found: dict[str, float] | None, *, sign: bool = False) -> str:
    if not found:
        return "-"
    form = "+.4g" if sign else ".4g"
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "<0.0001"
