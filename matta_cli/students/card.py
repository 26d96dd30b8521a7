"""A Student's model card: a README.md that people read, and the hub understands."""

from __future__ import annotations

import ast
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name

from matta_cli.files import reading
from matta_cli.report.claims import Comparison, against_float
from matta_cli.report.findings import batches
from matta_cli.report.numbers import MISSING, count, finite, in_bytes, in_seconds
from matta_cli.report.render import escaped, fence
from matta_cli.report.schema import Interval, Metric, ModelEntry, Parity, Report
from matta_cli.report.values import decimals_of, shown
from matta_cli.settings.budget import LIMITS, TIMED
from matta_cli.settings.recipe import DataSettings
from matta_cli.students.runtimes import place, runtimes, uneven

# what the hub calls the tasks
PIPELINES = {
    "causal_lm": "text-generation",
    "image_classification": "image-classification",
    "ranking": "tabular-classification",
    "sentence_embedding": "sentence-similarity",
    "text_classification": "text-classification",
    "token_classification": "token-classification",
}

_TEMPLATE = Path(__file__).with_name("card.md")
_LICENSE = ("license", "license_name", "license_link")
_FOLDER = re.compile(r"^folder = (.+)$", re.MULTILINE)
_NEEDS = {"transformers": "transformers torchao"}
_VERDICT = "\n## Verdict\n\n"


def text(entry: ModelEntry, report: Report, data: DataSettings, here: Path) -> str:
    """README.md of a Student: what it is cut from, how good it is, what it costs, how to run it.

    data: the settings by which it was trained and measured. here: where its files lie now.
    """
    task = PIPELINES.get(report.task, report.task)
    card = ModelCard.from_template(
        _metadata(entry, report, data),
        str(_TEMPLATE),
        name=escaped(entry.name),
        version=report.matta,
        source=escaped(report.lineage["source"]),
        compared=[list(map(escaped, row)) for row in _compared(entry, report)],
        facts=[list(map(escaped, row)) for row in _facts(entry, report)],
        folder=fence(f"folder = {place(entry)!r}", "python"),
        runtimes=[
            (r.name, r.tried, fence(r.code, r.language)) for r in runtimes(entry, task, here)
        ],
        uneven=uneven(entry, task),
        recipe=fence(report.recipe.strip(), "toml"),
    )
    return f"{card}\n"


def on_hub(card: str, name: str) -> str:
    """A card as it stands on the hub in the repository ``name``, from which its lines then load."""
    found = _FOLDER.search(card)
    try:
        there = str(ast.literal_eval(found[1])) if found else ""
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        there = ""
    if not found or not there:  # somebody has changed it
        return card
    loads = f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({name!r})"
    card = card.replace(found[0], loads, 1)
    return card.replace(f"vllm serve {shlex.quote(there)}", f"vllm serve {name}").replace(
        f".py {shlex.quote(there)} ", f".py $(hf download {name}) "
    )


def left_out(lineage: Mapping[str, Any]) -> str:
    """What was left out of the model that was converted, in words; empty where nothing was."""
    heads = ", ".join(map(str, lineage.get("dropped") or []))
    out = [f"its head ({heads}), which was left out (--drop-head)"] if heads else []
    if tokens := lineage.get("tokens"):
        kept, of = tokens[0], tokens[-1]
        out.append(f"{of - kept:,} of its {of:,} tokens, which the data has not (--trim-vocab)")
    return ", ".join(out)


def saved_in(parity: Parity) -> str:
    """In what numbers weights are saved, and what rounding does to the outputs."""
    if parity.rounded is None:
        return parity.dtype
    return f"{parity.dtype}: outputs within {parity.rounded:.2g} of the largest, of float32's"


def with_verdict(card: str, verdict: str) -> str:
    """A card with a verdict at its end, in place of one that it has; none where that is empty."""
    return card.partition(_VERDICT)[0] + (f"{_VERDICT}{escaped(verdict)}\n" if verdict else "")


def _metadata(entry: ModelEntry, report: Report, data: DataSettings) -> ModelCardData:
    """What the hub reads. Only what is known is said."""
    source, dataset = report.lineage["source"], _hub_id(data.train, "dataset")
    pipeline = PIPELINES.get(report.task)
    results = [
        EvalResult(
            task_type=pipeline or report.task,
            dataset_type=dataset or "local",
            dataset_name=report.data,
            metric_type=metric.name,
            metric_name=metric.label,
            metric_value=entry.metrics[metric.name].value,
            metric_args=_interval(entry.metrics[metric.name]),
        )
        for metric in report.metrics
        if metric.name in entry.metrics and math.isfinite(entry.metrics[metric.name].value)
    ]
    return ModelCardData(
        library_name=_library(entry),
        base_model=_hub_id(source, "model"),
        pipeline_tag=pipeline,
        datasets=[dataset] if dataset else None,
        tags=["matta"],
        model_name=f"Student {entry.name}",
        eval_results=results or None,
        **_license(source),
    )


def _library(entry: ModelEntry) -> str:
    return entry.loader.partition(".")[0].replace("_", "-") if entry.stock else "matta"


def _interval(value: Interval) -> dict[str, Any] | None:
    """The ends of a value's 95 % interval, as the hub's results have what a metric was given."""
    known = finite(value.low) and finite(value.high)
    return {"confidence": 0.95, "low": value.low, "high": value.high} if known else None


def _hub_id(name: str, kind: str) -> str | None:
    """The hub's id for a model or dataset, where ``name`` is one: it lies in the hub's cache."""
    own = name.removeprefix("hf-hub:")
    if Path(own).expanduser().exists():
        return None  # a local path comes first
    try:
        cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=own, repo_type=kind)
    except HFValidationError:
        return None
    return own if cached.is_dir() else None


def _license(source: str) -> dict[str, Any]:
    """What the card of the user's model says of its license, if that model lies in a folder."""
    readme = Path(source).expanduser() / "README.md"
    try:
        words = reading.text(readme)
        known = ModelCard(words, ignore_metadata_errors=True).data if words[:3] == "---" else None
    except Exception:  # what lies there, and what is in it, is a stranger's
        known = None
    return {name: getattr(known, name, None) for name in _LICENSE}


def _compared(entry: ModelEntry, report: Report) -> Iterator[tuple[str, str, str]]:
    """What a Student costs and how good it is, and the base, as the report has it."""
    both = (entry, report.base or ModelEntry("base"))

    def row(what: str, cell: Callable[[ModelEntry], str]) -> tuple[str, str, str]:
        ours, theirs = map(cell, both)
        return what, ours, theirs

    yield row("parameters", lambda model: count(model.cost.parameters))
    yield row("MACs per example", lambda model: count(model.cost.macs))
    yield row("bytes of weights", lambda model: in_bytes(model.cost.bytes))
    for of in TIMED:
        for size in batches(report, of):
            what = f"{LIMITS[of].label}, batch {size}, median (95th percentile)"
            yield row(what, partial(_taken, size=size, of=of))
    for metric in report.metrics:
        yield row(f"{metric.label}{metric.way}", partial(_value, report=report, metric=metric))


def _taken(model: ModelEntry, size: int, of: str) -> str:
    taken = model.timing(size, of)
    return f"{in_seconds(taken.median)} ({in_seconds(taken.p95)})" if taken.median else MISSING


def _value(model: ModelEntry, report: Report, metric: Metric) -> str:
    known = model.measured(metric)
    return MISSING if known is None else shown(known, decimals_of(report, metric))


def _against(entry: ModelEntry, report: Report) -> list[Comparison]:
    """A quantized Student against its float one."""
    return [one for one in against_float(report) if one.student is entry]


def _facts(entry: ModelEntry, report: Report) -> Iterator[tuple[str, str]]:
    machine = report.device
    if entry.quantized:
        module = entry.loader.partition(".")[0]
        yield "needs", f"pip install {_NEEDS.get(module, module)}"
    yield from ((f"against {one.other.name}", one.sentence) for one in _against(entry, report))
    if entry.parity is not None:
        yield "weights saved in", saved_in(entry.parity)
    yield "measured on", f"{report.data}; intervals are of 95 %"
    threads = f"{machine.threads} thread{'s' if machine.threads != 1 else ''}"
    yield "by", f"{machine.name}, {threads}, torch {machine.torch}"
    if dropped := left_out(report.lineage):
        yield "not of the model that was converted", dropped
    yield "weights of the model that was converted", report.lineage["digest"]
    yield "weights of the trained TA", report.lineage["ta"]
