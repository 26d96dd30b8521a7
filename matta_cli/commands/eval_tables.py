"""What ``matta eval`` prints: tables on stdout, one after the other, and sentences on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matta_cli import console
from matta_cli.report.numbers import percent, places_for
from matta_cli.report.values import REPEATS
from matta_cli.report.verdicts import UNCLEAR, why_unclear

Result = dict[str, Any]
_REFERENCES = {"ta": "TA", "teacher": "Teacher"}


def show(result: Result) -> None:
    """Print what an evaluation gave, with an empty line between its tables."""
    known = {metric["name"] for metric in result["metrics"]}
    metrics = [metric for metric in result["metrics"] if REPEATS.get(metric["name"]) not in known]
    folder = _shared(result) if sys.stdout.isatty() else ""
    if folder:
        result = _within(result, folder)
        console.say(f"The models lie in {folder}.")
    _show_models(result, metrics)
    _show_differences(result, metrics)
    _show_harness(result)
    for cascade in result.get("cascade", []):
        _show_cascade(cascade, result["metrics"][0])
    if "speculative" in result:
        _show_speculative(result["speculative"])


def _shared(result: Result) -> str:
    """The folder that all models lie in; empty where there is none."""
    folders = [Path(model["name"]).parent for model in result["models"]]
    if len(folders) < 2 or len({folder.is_absolute() for folder in folders}) > 1:
        return ""
    folder = Path(os.path.commonpath(folders))
    return str(folder) if folder.name and folder.is_dir() else ""


def _within(result: Result, folder: str) -> Result:
    """What an evaluation gave, with the names that its models have within a folder."""

    def short(name: str) -> str:
        return os.path.relpath(name, folder)

    models = [{**model, "name": short(model["name"])} for model in result["models"]]
    return {**result, "models": models, "against": short(result["against"])}


def _show_models(result: Result, metrics: Sequence[Mapping[str, Any]]) -> None:
    references = {key: name for key, name in _REFERENCES.items() if key in result["agreement"]}
    headers = ["model", "parameters", "MACs", *(metric["label"] for metric in metrics)]
    headers += [f"agrees with {name}" for name in references.values()]
    rows = []
    for model in result["models"]:
        row = [model["name"], f"{model['parameters']:,}", f"{model['macs']:,}"]
        row += [_interval(model["metrics"].get(metric["name"])) for metric in metrics]
        rows.append(row + [_interval(model["agreement"].get(key)) for key in references])
    at = console.fitting([(headers, rows), *_narrower(headers, rows)], elsewhere="")
    if at in (1, 2):
        console.say(f"Not shown, for there is no room: {', '.join(headers[3 - at : 3])}.")
    if result["tokens"]:
        console.say(f"MACs are of an example of {result['tokens']:,} tokens.")
    if references:
        console.say(f"Agreement is the share of {result['agreement']['of']}.")


def _narrower(headers: list[str], rows: list[list[str]]) -> Iterator[console.Table]:
    """The table of models without its costs, and then with a line for each thing measured."""
    yield [*headers[:2], *headers[3:]], [[*row[:2], *row[3:]] for row in rows]
    yield [headers[0], *headers[3:]], [[row[0], *row[3:]] for row in rows]
    lines = [
        [row[0] if at == 1 else "", headers[at], row[at]]
        for row in rows
        for at in range(1, len(headers))
    ]
    yield [headers[0], "measured", "value"], lines


def _show_differences(result: Result, metrics: Sequence[Mapping[str, Any]]) -> None:
    rows, unclear = [], []
    for model in result["models"]:
        for metric in metrics:
            less = model["differences"].get(metric["name"])
            if less:
                row = [model["name"], metric["label"], _interval(less, sign=True)]
                rows.append(
                    [*row, less["verdict"] or "-", _p(less["p"]), _p(less["p_holm"]), less["test"]]
                )
                why = why_unclear(less["low"], less["high"], less["p"], less["examples"])
                if why and less["verdict"] == UNCLEAR:
                    unclear.append(f"{model['name']} is unclear in {metric['label']}: {why}.")
    headers = ["model", "metric", f"less {result['against']}", "verdict", "p", "p (Holm)", "test"]
    _another(headers, rows, spare=["test", "p (Holm)", "p"])
    if rows:
        console.say(
            f"Verdicts go by the intervals and p, as in a report: a loss within "
            f"{percent(result['margin'])} of the value of {result['against']} is slight at most."
        )
    for sentence in unclear:
        console.say(sentence)


def _show_harness(result: Result) -> None:
    """The metrics of the tasks of lm-evaluation-harness."""
    rows = []
    for model in result["models"]:
        for task, scored in model.get("tasks", {}).items():
            for name, metric in scored["metrics"].items():
                error = "-" if metric["stderr"] is None else f"{metric['stderr']:.2g}"
                row = [model["name"], task, name, f"{metric['value']:.4g}", error]
                less = scored["differences"].get(name)
                rows.append(
                    row + ([_interval(less, sign=True), _p(less["p_holm"])] if less else ["-", "-"])
                )
    headers = ["model", "task", "metric", "value", "standard error"]
    _another([*headers, f"less {result['against']}", "p (Holm)"], rows)


def _show_cascade(cascade: Result, metric: Mapping[str, Any]) -> None:
    small, large = cascade["models"]
    name, macs = metric["name"], cascade["macs"]
    rows = [[small, "-", "0%", f"{macs['small']:,}", f"{cascade['small'][name]:.4f}"]]
    for point in cascade["curve"]:
        cost = f"{point['passed_on']:.0%}", f"{point['macs']:,.0f}"
        rows.append(
            ["cascade", f"{point['threshold']:.4f}", *cost, f"{point['metrics'][name]:.4f}"]
        )
    rows.append([large, "-", "100%", f"{macs['large']:,}", f"{cascade['large'][name]:.4f}"])
    headers = [f"{small}, then {large}", cascade["unsure"], "passed on", "MACs", metric["label"]]
    _another(headers, rows)
    best, examples = cascade["chosen"], cascade["examples"]
    what = {
        "cascade": f"the threshold {best['threshold']:.4f}" if best["kind"] == "cascade" else "",
        "small alone": "the smaller model alone, which was as good there",
    }.get(best["kind"], "the larger model alone, as good as which nothing cheaper was there")
    less = best["against"]["large"][name]
    console.say(
        f"Chosen on {examples['chosen_on']:,} examples: {what}. "
        f"On the other {examples['measured_on']:,}: "
        f"{metric['label']} {_interval(best['metrics'][name])} "
        f"at {best['macs'] / macs['large']:.0%} of the larger model's MACs; "
        f"less the larger model's {_interval(less, sign=True)}, p {_p(less['p'])}."
    )


def _show_speculative(drafted: Result) -> None:
    speed, ratio = drafted["tokens_per_second"], drafted["ratio"]
    between = {**ratio, "value": ratio["median"]}
    rows = [
        ["acceptance", f"{drafted['acceptance']:.1%} of {drafted['proposed']:,} drafted tokens"],
        ["tokens per call of the larger", f"{drafted['tokens_per_call']:.2f}"],
        ["tokens/s, drafted", f"{speed['drafted']:,.1f}"],
        ["tokens/s, alone", f"{speed['alone']:,.1f}"],
        ["drafting is", f"{_times(ratio['median'])} (ratio {_interval(between)})"],
        ["same output", f"{drafted['identical']:.0%} of {drafted['prompts']} prompts"],
    ]
    _another([f"{drafted['small']} drafts for {drafted['large']}", ""], rows, left=True)
    if drafted["identical"] < 1:
        why = "two tokens are equally likely up to rounding: checking drafts is another batch"
        console.say(f"Greedy outputs differ where {why}.")


def _another(
    headers: list[str], rows: list[list[str]], *, spare: Sequence[str] = (), left: bool = False
) -> None:
    """One more table, if it has rows."""
    if rows:
        console.text("\n")
        console.table(headers, rows, spare, left=left)


def _interval(value: Mapping[str, float] | None, *, sign: bool = False) -> str:
    """A value and its interval, ``0.8 [0.7, 0.9]``; without one where examples are too few."""
    if not value:
        return "-"
    if value["low"] is None:
        return f"{value['value']:.3f}"
    half = (value["high"] - value["low"]) / 2
    form = f"{'+' if sign else ''}.{places_for([half]) if half > 0 else 3}f"
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _times(ratio: float) -> str:
    """A ratio of speeds in words: 0.27 is 3.7 times slower."""
    if 0.95 <= ratio <= 1.05 or ratio <= 0:
        return "about as fast"
    return f"{ratio:.2g} times faster" if ratio > 1 else f"{1 / ratio:.2g} times slower"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "<0.0001"
