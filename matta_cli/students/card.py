"""A Student's model card: a README.md that people read, and the hub understands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name

from matta_cli.report.findings import batches
from matta_cli.report.render import escaped, fence
from matta_cli.report.schema import ModelEntry, Parity, Report
from matta_cli.settings.budget import LIMITS, TIMED
from matta_cli.settings.recipe import DataSettings

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
_VERDICT = "\n## Verdict\n\n"


def text(entry: ModelEntry, report: Report, data: DataSettings) -> str:
    """README.md of a Student: what it is cut from, how good it is, what it costs, how to load it.

    data: the settings by which it was trained and measured.
    """
    loaders = [entry.loader, *(program.loader for program in entry.programs.values())]
    blocks = [f"import {text.partition('.')[0]}\nmodel = {text}" for text in loaders]
    card = ModelCard.from_template(
        _metadata(entry, report, data),
        str(_TEMPLATE),
        name=escaped(entry.name),
        version=report.matta,
        source=escaped(report.lineage["source"]),
        loading=fence("\n\n".join(blocks), "python"),
        rows=[(escaped(what), escaped(value)) for what, value in _rows(entry, report)],
        recipe=fence(report.recipe.strip(), "toml"),
    )
    return f"{card}\n"


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
        )
        for metric in report.metrics
        if metric.name in entry.metrics and math.isfinite(entry.metrics[metric.name].value)
    ]
    return ModelCardData(
        library_name=entry.loader.partition(".")[0] if entry.stock else "matta",
        base_model=_hub_id(source, "model"),
        pipeline_tag=pipeline,
        datasets=[dataset] if dataset else None,
        tags=["matta"],
        model_name=f"Student {entry.name}",
        eval_results=results or None,
        **_license(source),
    )


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
        words = readme.read_text(encoding="utf-8")
        known = ModelCard(words, ignore_metadata_errors=True).data if words[:3] == "---" else None
    except Exception:  # what lies there, and what is in it, is a stranger's
        known = None
    return {name: getattr(known, name, None) for name in _LICENSE}


def _rows(entry: ModelEntry, report: Report) -> Iterator[tuple[str, str]]:
    cost, machine = entry.cost, report.device
    yield "parameters", f"{cost.parameters:,}"
    yield "MACs per example", f"{cost.macs:,}"
    if cost.bytes:
        yield "bytes of weights", f"{cost.bytes:,}"
    if entry.parity is not None:
        yield "weights saved in", saved_in(entry.parity)
    for of in TIMED:
        for size in batches(report, of):
            taken = entry.timing(size, of)
            if taken.median is not None and taken.p95 is not None:
                what = f"{LIMITS[of].label}, batch {size}, median (95th percentile)"
                yield what, f"{taken.median:.4g} s ({taken.p95:.4g} s)"
    for metric in report.metrics:
        if metric.name in entry.metrics:
            value = entry.metrics[metric.name]
            interval = f"(95 %: {value.low:.4g} to {value.high:.4g})"
            yield metric.label, f"{value.value:.4g} {interval}"
    yield "measured on", report.data
    yield "by", f"{machine.name}, {machine.threads} threads, torch {machine.torch}"
    if dropped := left_out(report.lineage):
        yield "not of the model that was converted", dropped
    yield "weights of the model that was converted", report.lineage["digest"]
    yield "weights of the trained TA", report.lineage["ta"]
