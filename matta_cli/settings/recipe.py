"""The recipe: every setting of a run, resolved from flags, files and defaults, and written beside
each result.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from matta_cli.errors import MattaError

MATTA, OURS = "MatTA, arXiv 2505.23337", "our choice"


def _setting(default: Any, doc: str, source: str = OURS) -> Any:
    """A setting: its default, a sentence, and where that comes from (a paper, or this project's own
    choice).
    """
    factory = (
        {"default_factory": lambda: list(default)}
        if isinstance(default, list)
        else {"default": default}
    )
    return field(metadata={"doc": doc, "source": source}, **factory)


@dataclass
class ConvertSettings:
    source: str = _setting(
        "", "the model to start from: a folder, a hub id, a timm name, or a state dict"
    )
    adapter: str = _setting("", "the architecture's adapter; empty: found from the source")
    weights: str = _setting(
        "", "the weights of a model that a function builds: a state dict (.safetensors, .pt)"
    )
    example: str = _setting(
        "", "for the adapter auto: the model's inputs, 1x3x224x224, ids=1x16:int64 or pkg.mod:fn"
    )
    task: str = _setting(
        "",
        "for the adapter auto: causal_lm, image_classification or ranking; empty: from the example",
    )
    expand: float = _setting(
        2.0, "the TA's width; the base is width 1.0, and 1.0 nests inside the base itself"
    )
    axes: list[str] = _setting(
        [], "kinds of axes to nest, such as mlp, heads, hidden, depth; empty: the adapter's default"
    )
    sizes: list[str] = _setting(
        [],
        "sizes of a width where its axes are not scaled alike, as '0.5: depth=0.75 mlp=0.5'",
        "Starbucks, arXiv 2410.13230",
    )
    order: str = _setting(
        "auto",
        "order of units: activation, taylor, hessian, magnitude or none; auto: activation where data is given",
    )
    multiple: int = _setting(
        8, "sizes of large axes (64 units and more) are rounded to multiples of this"
    )
    tokenizer: str = _setting("", "folder or hub id of the tokenizer, where the source has none")
    tolerance: float = _setting(
        1e-4, "largest difference allowed between the base and the TA at width 1.0, relative"
    )
    seed: int = _setting(0, "seed of the new units' weights")


@dataclass
class DataSettings:
    train: str = _setting("", "training data: a file, a folder, or a hub dataset id")
    held_out: str = _setting(
        "", "held-out data for the report; empty: the last tenth of the training data"
    )
    config: str = _setting("", "configuration name of a hub dataset")
    split: str = _setting("train", "split of a hub dataset to train on")
    held_out_split: str = _setting(
        "",
        "split of a hub dataset to measure on; empty: validation, else test, else a tenth of train",
    )
    text: str = _setting("text", "column that holds the text (JSONL, Parquet, hub)")
    sentences: list[str] = _setting(
        ["sentence1", "sentence2"],
        "the two columns of a pair of sentences (CSV, JSONL, Parquet, hub)",
    )
    score: str = _setting(
        "score", "column that says how alike the two are (CSV, JSONL, Parquet, hub)"
    )
    image: str = _setting("image", "column that holds the image (hub)")
    label: str = _setting("label", "column that holds the label (CSV, Parquet, hub)")
    group: str = _setting(
        "", "column that names the query of a row (CSV, Parquet); empty: every row stands alone"
    )
    id: str = _setting(
        "", "column that names a row, for Teacher files with a column id (CSV, Parquet)"
    )
    categorical: list[str] = _setting(
        [], "columns of the embeddings, in the model's order (CSV, Parquet)"
    )
    dense: list[str] = _setting(
        [], "columns of the dense features, in the model's order (CSV, Parquet)"
    )
    passages: str = _setting(
        "", "JSONL of passages for last-word accuracy (as LAMBADA); empty: held-out paragraphs"
    )
    sequence_length: int = _setting(0, "tokens per sequence; 0: the model's maximum, 1024 at most")
    eval_examples: int = _setting(
        2000, "held-out examples (sequences, images, queries or rows) to measure on; 0: all"
    )
    streaming: bool = _setting(
        False, "read a hub dataset of text on demand, only as much as the run needs"
    )
    max_tokens: int = _setting(
        0, "tokens to train on at most; 0: all, or what the run needs when streaming"
    )
    workers: int = _setting(
        0, "processes that fetch training batches ahead; 0: none beside the run's own"
    )


@dataclass
class DistillSettings:
    teacher: str = _setting(
        "", "the Teacher: a folder, a hub id, a timm name, a state dict, or a file of outputs"
    )
    steps: int = _setting(1000, "training steps")
    batch_size: int = _setting(16, "examples per step, over all devices")
    micro_batch: int = _setting(
        0, "examples in memory at a time, on each device; 0: the whole batch"
    )
    lr: float = _setting(5e-4, "peak learning rate")
    warmup: float = _setting(
        0.05, "share of the steps that warm the learning rate up; cosine down to a tenth after it"
    )
    optimizer: str = _setting(
        "adamw",
        "adamw, shampoo, soap or muon",
        "Shampoo: MatTA, arXiv 2505.23337; AdamW: our choice",
    )
    weight_decay: float = _setting(
        0.01, "decoupled weight decay of matrices", "Loshchilov & Hutter 2019, arXiv 1711.05101"
    )
    clip: float = _setting(1.0, "largest gradient norm; 0: no clipping")
    widths: list[float] = _setting(
        [0.25, 0.5, 1.0], "the Students' widths; train what will be exported"
    )
    students_per_step: int = _setting(
        3,
        "Students in a step; 2 and more: the smallest, the largest, the rest at random",
        "sandwich rule, arXiv 1903.05134",
    )
    sampling: list[float] = _setting(
        [], "chances of the widths to be drawn, relative to one another; empty: all alike"
    )
    teacher_mix: float = _setting(
        0.9,
        "share of the Teacher in the loss of TA and Students; the rest is ground truth, if there is any",
        f"term: {MATTA}; value: {OURS}",
    )
    student_weight: float = _setting(
        1.0, "weight of the Students' own loss", f"term: {MATTA}; value: {OURS}"
    )
    ta_weight: float = _setting(1.0, "weight of the TA's own loss", f"term: {MATTA}; value: {OURS}")
    ta_student_weight: float = _setting(
        0.5, "final weight of the TA -> Student term", f"term: {MATTA}; value: {OURS}"
    )
    ramp: float = _setting(
        0.2,
        "share of the steps over which the TA -> Student term is phased in from zero",
        f"idea: {MATTA}; value: {OURS}",
    )
    temperature: float = _setting(
        2.0, "temperature of the softened logits", "Hinton et al. 2015, arXiv 1503.02531"
    )
    divergence: str = _setting(
        "forward",
        "of classes: forward KL(Teacher || model), reverse KL, or js (Jensen-Shannon)",
        "reverse: arXiv 2306.08543",
    )
    students_learn_from: str = _setting(
        "both", "both, ta or teacher: whose outputs the Students follow"
    )
    detach_ta: bool = _setting(True, "the TA -> Student term does not train the TA")
    ta_width: float = _setting(0.0, "the width at which the TA teaches; 0: its whole width")
    shared: bool = _setting(
        True, "Students are nested in the TA; false: unshared copies, the paper's ablation", MATTA
    )
    hidden_weight: float = _setting(
        0.0,
        "weight of matching the Teacher's last hidden states through a learned projection",
        "FitNets, arXiv 1412.6550",
    )
    ranking_loss: str = _setting(
        "pointwise",
        "for rankers: pointwise, pairwise or listwise",
        "RankNet (Burges 2005), ListNet (Cao 2007)",
    )
    relation_weight: float = _setting(
        1.0,
        "of embeddings: weight of matching the similarities within a batch",
        f"relational, arXiv 1904.05068; value: {OURS}",
    )
    output_dims: list[int] = _setting(
        [],
        "of embeddings: first so many numbers that shall serve alone, such as 256, 128, 64",
        "Matryoshka, arXiv 2205.13147",
    )
    logits: str = _setting(
        "auto", "chunked: never whole in memory; whole: faster; auto: chunked where they are large"
    )
    precision: str = _setting(
        "auto", "bf16, fp16, fp32 or tf32; auto: bf16 (or fp16) on CUDA, fp32 on a CPU"
    )
    compile: str = _setting(
        "", "torch.compile's backend (inductor, say), one graph per width; empty: not compiled"
    )
    checkpoint_activations: bool = _setting(
        False,
        "keep no activations inside blocks: less memory, more time",
        "Chen et al. 2016, arXiv 1604.06174",
    )
    eval_every: int = _setting(0, "steps between evaluations; 0: ten times in a run")
    eval_examples: int = _setting(
        200, "held-out examples of those evaluations; the report measures on data.eval_examples"
    )
    save_every: int = _setting(0, "steps between checkpoints; 0: at every evaluation")
    keep: int = _setting(2, "checkpoints that are kept, besides the best one; 0: all")
    best: float = _setting(
        0.0, "the width whose metric says which checkpoint is the best; 0: none is kept for that"
    )
    max_bad_steps: int = _setting(
        10, "steps in a row with a loss or gradient that is not finite before the run stops"
    )
    dropout: bool = _setting(
        True,
        "train with the models' own dropout; false: without, for short runs of pretrained models",
    )
    seed: int = _setting(0, "seed of data order, widths and dropout")
    device: str = _setting("auto", "cpu, cuda, cuda:N; auto: CUDA where there is one")
    shard: bool = _setting(
        False, "shard TA, Teacher and optimizer over the devices (FSDP2) instead of copying them"
    )
    log_to: list[str] = _setting([], "tensorboard, wandb: where the log goes besides metrics.jsonl")
    allow_weak_teacher: bool = _setting(
        False, "train even though the Teacher is no better than guessing"
    )


@dataclass
class ExportSettings:
    widths: list[float] = _setting([0.25, 0.5, 1.0], "the Students to export")
    target_params: list[str] = _setting(
        [], "Students by a budget: the most parameters, as 60M; several make a family"
    )
    target_latency: list[str] = _setting([], "the most time of a forward on this machine, as 5ms")
    target_memory: list[str] = _setting([], "the most bytes of weights, as 200MB")
    target_macs: list[str] = _setting([], "the most multiply-accumulates of one example, as 3G")
    format: list[str] = _setting(
        [],
        "of the Students: stock or matta (its own); and pt2 (torch.export), onnx beside it; none: stock where it can be",
    )
    dtype: str = _setting(
        "float32", "of the Students' weights as saved: float32, bfloat16 or float16"
    )
    checkpoint: str = _setting(
        "auto", "best, last, or step-N; auto: the best one where the run kept one, else the last"
    )
    batch_size: int = _setting(
        8, "batch of the throughput measurement, which is also made at 1 and at four times as many"
    )
    threads: int = _setting(
        0, "threads of a CPU that latency is measured with; 0: torch's own number"
    )
    bootstrap: int = _setting(200, "resamples of the 95 % intervals")
    margin: float = _setting(
        0.01, "share of a baseline's value that a Student may lose and be called no worse"
    )


@dataclass
class SearchSettings:
    trials: int = _setting(32, "sizes that are tried for each budget, besides the uniform widths")
    examples: int = _setting(
        0,
        "held-out examples that sizes are chosen by, none of which is reported on; 0: so many that it costs little",
    )
    sizes: str = _setting(
        "auto",
        "trained: layers of trained sizes only; any: also sizes between; auto: one such layer, where a budget needs it",
    )
    stock_only: bool = _setting(False, "only Students that the stock library can load")
    seed: int = _setting(0, "seed of what the search tries")


@dataclass
class Recipe:
    """Every setting of convert, distill, export and search. Section by section the tables of
    ``matta.toml``.
    """

    convert: ConvertSettings = field(default_factory=ConvertSettings)
    data: DataSettings = field(default_factory=DataSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    search: SearchSettings = field(default_factory=SearchSettings)

    def update(self, values: Mapping[str, Any], origin: str) -> None:
        """Set values from nested tables (``{"distill": {"lr": 0.1}}``). ``origin`` names them in an
        error.
        """
        for section, table in values.items():
            settings = getattr(self, section, None) if section in _sections() else None
            if settings is None:
                raise MattaError(
                    f"{origin}: there is no table [{section}]{_did_you_mean(section, _sections())}."
                )
            if not isinstance(table, Mapping):
                raise MattaError(
                    f"{origin}: {section} is a table of settings, not {table!r}: put them below [{section}]."
                )
            hints = get_type_hints(type(settings))
            for key, value in table.items():
                if key not in hints:
                    raise MattaError(
                        f"{origin}: [{section}] has no setting {key!r}{_did_you_mean(key, hints)}."
                    )
                setattr(settings, key, _typed(value, hints[key], f"{origin}: {section}.{key}"))

    def text(
        self,
        sections: Iterable[str] = ("convert", "data", "distill", "export", "search"),
        *,
        header: str = "",
    ) -> str:
        """The recipe as commented TOML that ``update`` reads back."""
        lines = [f"# {line}" if line else "#" for line in header.splitlines()]
        for section in sections:
            settings = getattr(self, section)
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
            for f in dataclasses.fields(settings):
                assignment = f"{f.name} = {json.dumps(getattr(settings, f.name))}"
                lines.append(f"{assignment:<33} # {f.metadata['doc']}")
        return "\n".join(lines) + "\n"


def _sections() -> list[str]:
    return [f.name for f in dataclasses.fields(Recipe)]


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(known)}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the setting's type, without guessing: 1 passes for a float, "1" does not."""
    if get_origin(hint) is list and isinstance(value, (list, tuple)):
        return [_typed(v, get_args(hint)[0], where) for v in value]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        get_origin(hint) is None
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    name = "list" if get_origin(hint) is list else hint.__name__
    article = "an" if name == "int" else "a"
    raise MattaError(f"{where} is {value!r}, but {article} {name} is needed.")
