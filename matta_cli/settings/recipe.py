"""The recipe: every setting of a run, resolved from flags, files and defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from matta_cli.errors import MattaError
from matta_cli.settings import gone
from matta_cli.settings.convert import ConvertSettings
from matta_cli.settings.presets import PRESETS
from matta_cli.settings.setting import MATTA, OURS, SHARE, About, flag, setting
from matta_cli.settings.values import did_you_mean, toml, typed

TERM = f"term: {MATTA}; value: {OURS}"


@dataclass
class DataSettings:
    """What is trained and measured on."""

    train: str = flag("", "training data: a file, a folder, or a hub dataset id", called="--data")
    held_out: str = flag(
        "", "held-out data for the report; empty: the last tenth of the training data"
    )
    config: str = setting(
        "", "configuration of a hub dataset, or of a folder whose README.md names several"
    )
    split: str = setting("train", "split of a hub dataset to train on")
    held_out_split: str = setting(
        "",
        "split of a hub dataset to measure on; empty: validation, else test, else a tenth of train",
    )
    text: str = setting("text", "column that holds the text (JSON, CSV, TSV, Parquet, hub)")
    sentences: list[str] = setting(
        ["sentence1", "sentence2"],
        "the two columns of a pair of sentences (JSON, CSV, TSV, Parquet, hub)",
    )
    score: str = setting(
        "score", "column that says how alike the two are (JSON, CSV, TSV, Parquet, hub)"
    )
    image: str = setting("image", "column that holds the image (hub)")
    label: str = setting(
        "label", "column that holds the label, or a list of several (JSON, CSV, TSV, Parquet, hub)"
    )
    words: str = setting(
        "tokens", "column that holds a text's words as a list (JSON, Parquet, hub)"
    )
    tags: str = setting("tags", "column that holds a tag of each word (JSON, Parquet, hub)")
    group: str = setting(
        "",
        "column that names the query of a row, of rankers and rerankers; empty: every row stands "
        "alone",
    )
    id: str = setting("", "column that names a row, for Teacher files with a column id")
    categorical: list[str] = setting(
        [], "columns of the embeddings, in the model's order (CSV, Parquet)"
    )
    dense: list[str] = setting(
        [], "columns of the dense features, in the model's order (CSV, Parquet)"
    )
    passages: str = flag(
        "", "JSONL of passages for last-word accuracy (as LAMBADA); empty: held-out paragraphs"
    )
    sequence_length: int = flag(0, "tokens per sequence; 0: the model's maximum, 1024 at most")
    train_on: str = flag(
        "completions",
        "of conversations, what is learned and measured: {choices}",
        choices="completions: what the assistant says | all: prompts, too",
    )
    eval_examples: int = setting(
        2000, "held-out examples (sequences, images, queries or rows) to measure on; 0: all"
    )
    streaming: bool = setting(
        False, "read a hub dataset of text on demand, only as much as the run needs"
    )
    max_tokens: int = setting(
        0, "tokens to train on at most; 0: all, or what the run needs when streaming"
    )
    workers: int = setting(
        0, "processes that fetch training batches ahead; 0: none beside the run's own"
    )


@dataclass
class DistillSettings:
    """How a TA is trained."""

    preset: str = flag(
        "default",
        "a recipe by its name, which files and flags stand above: {choices}",
        choices=" | ".join(PRESETS),
    )
    teacher: str = flag(
        "", "the Teacher: a folder, a hub id, a timm name, a state dict, or a file of outputs"
    )
    teacher_adapter: str = flag(
        "", "the adapter that opens the Teacher; empty: the TA's own, else found from the Teacher"
    )
    teacher_config: str = flag(
        "", "the Teacher's config.json, for a state dict whose sizes do not tell its architecture"
    )
    steps: int = flag(1000, "training steps", above=0)
    batch_size: int = flag(16, "examples per step, over all devices", above=0)
    micro_batch: int = flag(0, "examples in memory at a time, on each device; 0: the whole batch")
    lr: float = flag(5e-4, "peak learning rate", above=0)
    warmup: float = setting(0.05, "share of the steps that warm the learning rate up", **SHARE)
    schedule: str = setting(
        "wsd",
        "the learning rate after that: {choices}",
        "wsd: arXiv 2405.18392",
        choices="wsd: constant, at last linearly to 0 | cosine: down to a tenth",
    )
    decay: float = setting(0.2, "of wsd: share of the steps that go down to 0", **SHARE)
    optimizer: str = flag(
        "adamw",
        "{choices}; where steps are few, muon and soap came further in as many (docs/recipe.md)",
        "Shampoo: MatTA, arXiv 2505.23337; AdamW: our choice",
        choices="adamw | shampoo | soap | muon",
    )
    weight_decay: float = setting(
        0.01, "decoupled weight decay of matrices", "Loshchilov & Hutter 2019, arXiv 1711.05101"
    )
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping")
    widths: list[float] = flag(
        [0.25, 0.5, 1.0], "the Students' widths; train what will be exported"
    )
    rows: str = setting(
        "divided",
        "what each row of a batch goes through: {choices}",
        choices="divided: one of the models, for a fraction of the cost | all: every model",
    )
    shares: list[float] = setting(
        [],
        "shares of divided rows, relative to one another: one for each of the widths, and a last "
        "one for a TA that is wider than all; empty: equal",
    )
    teacher_mix: float = setting(
        0.9,
        "share of the Teacher in the loss of TA and Students; the rest is ground truth, "
        "if there is any",
        TERM,
        **SHARE,
    )
    ta_weight: float = setting(
        1.0, "weight of the TA's own loss, beside 1 for the Students'; 0: it is not trained", TERM
    )
    ta_student_weight: float = setting(
        0.0, "final weight of the TA -> Student term; 0: Students follow the Teacher alone", TERM
    )
    ramp: float = setting(
        0.2,
        "share of the steps over which the TA -> Student term is phased in from zero",
        f"idea: {MATTA}; value: {OURS}",
        **SHARE,
    )
    temperature: float = setting(
        2.0,
        "temperature of the softened logits",
        "Hinton et al. 2015, arXiv 1503.02531",
        above=0,
        most=10_000,
    )
    students_learn_from: str = setting(
        "both",
        "whose outputs the Students follow: {choices}",
        choices="both: the Teacher's and the TA's | ta: the TA's alone",
    )
    shared: bool = setting(
        True, "Students are nested in the TA; false: unshared copies, the paper's ablation", MATTA
    )
    ranking_loss: str = flag(
        "pointwise",
        "for rankers: {choices}",
        "RankNet (Burges 2005), ListNet (Cao 2007)",
        choices="pointwise | pairwise | listwise",
    )
    relation_weight: float = setting(
        1.0,
        "of embeddings: weight of matching the similarities within a batch",
        f"relational, arXiv 1904.05068; value: {OURS}",
    )
    output_dims: list[int] = setting(
        [],
        "of embeddings: first so many numbers that shall serve alone, such as 256, 128, 64",
        "Matryoshka, arXiv 2205.13147",
    )
    logits: str = setting(
        "auto",
        "{choices}",
        choices="auto: chunked where they are large | chunked: never whole in memory "
        "| whole: faster",
    )
    precision: str = flag(
        "auto",
        "{choices}",
        choices="auto: bf16 (or fp16) on CUDA, fp32 on a CPU | bf16 | fp16 | fp32 | tf32",
    )
    compile: str = flag(
        "", "torch.compile's backend (inductor, say), one graph per width; empty: not compiled"
    )
    checkpoint_activations: bool = flag(
        False,
        "keep no activations inside blocks: less memory, more time",
        "Chen et al. 2016, arXiv 1604.06174",
    )
    eval_every: int = flag(0, "steps between evaluations; 0: ten times in a run")
    eval_examples: int = setting(
        200,
        "held-out examples of those evaluations, and of that of base and Teacher before the first "
        "step (200 at least); the report measures on data.eval_examples",
    )
    save_every: int = flag(0, "steps between checkpoints; 0: at every evaluation")
    keep: int = setting(2, "checkpoints that are kept, besides the best one; 0: all")
    best: float = flag(
        0.0, "the width whose metric says which checkpoint is the best; 0: none is kept for that"
    )
    max_bad_steps: int = flag(
        10,
        "steps in a row with a loss or gradient that is not finite before the run stops",
        above=0,
    )
    dropout: bool = setting(
        True,
        "train with the models' own dropout; false: without, for short runs of pretrained models",
    )
    seed: int = flag(0, "seed of data order, widths and dropout")
    device: str = flag("auto", "cpu, cuda, cuda:N; auto: CUDA where there is one")
    shard: bool = flag(
        False, "shard TA, Teacher and optimizer over the devices (FSDP2) instead of copying them"
    )
    log_to: list[str] = flag(
        [], "{choices}: where the log goes besides metrics.jsonl", choices="tensorboard | wandb"
    )
    allow_weak_teacher: bool = flag(
        False, "train even though the Teacher is worse than the base, or no better than guessing"
    )


@dataclass
class ExportSettings:
    """Which Students are exported, how, and what is measured of them."""

    widths: list[float] = flag([0.25, 0.5, 1.0], "the Students to export")
    target_params: list[str] = flag(
        [], "Students by a budget: the most parameters, as 60M or 50%; several make a family"
    )
    target_latency: list[str] = flag(
        [],
        "the most time on this machine, as 5ms: of a generated token for language models, of a "
        "forward for others",
    )
    target_prefill: list[str] = flag(
        [], "for language models: the most time from a prompt to its first token, as 100ms"
    )
    target_memory: list[str] = flag([], "the most bytes of weights, as 200MB")
    target_macs: list[str] = flag([], "the most multiply-accumulates of one example, as 3G")
    format: list[str] = flag(
        [],
        "of the Students: stock or matta (its own); and pt2 (torch.export), onnx beside it; "
        "none: stock where it can be",
        choices="stock | matta | pt2 | onnx",
    )
    dtype: str = flag(
        "auto",
        "of the Students' weights as saved: {choices}",
        choices="auto: as the model was stored that was converted | float32 | bfloat16 | float16",
    )
    quantize: list[str] = flag(
        [],
        "each Student in fewer bits, too, judged against it: {choices}",
        choices="int8: weights, and activations as they come | int8-static: ONNX, calibrated on "
        "training examples | int4: weights | auto: with --target-memory, int8 where it is better",
    )
    checkpoint: str = flag(
        "auto", "best, last, or step-N; auto: the best one where the run kept one, else the last"
    )
    batch_size: int = flag(
        8,
        "batch that latency is measured at, besides 1 and (but for language models) four times as "
        "many",
        called="--batch",
        least=1,
    )
    prompt_tokens: int = setting(
        0,
        "tokens of the prompt that a language model is timed with; 0: 128, or half of its "
        "positions where those are fewer",
    )
    new_tokens: int = setting(
        32, "tokens that a language model generates after it when it is timed", least=1
    )
    threads: int = flag(0, "threads of a CPU that latency is measured with; 0: torch's own number")
    bootstrap: int = flag(
        1000,
        "resamples of the 95 % intervals; by fewer than some hundreds no difference is sure",
        least=1,
        rule="it takes 1 resample or more",
    )
    margin: float = flag(
        0.01,
        "share of a baseline's value that a Student may lose and be called no worse",
        below=1,
        rule="it is a share of a baseline's value, from 0 to 1",
    )


@dataclass
class SearchSettings:
    """How sizes are searched for a budget."""

    trials: int = flag(
        32, "sizes that are tried for each budget, besides the uniform widths", least=1
    )
    examples: int = flag(
        0,
        "held-out examples that sizes are chosen by, none of which is reported on; "
        "0: so many that it costs little",
    )
    stock_only: bool = flag(False, "only Students that the stock library can load")
    seed: int = setting(0, "seed of what the search tries")


@dataclass
class Recipe:
    """Every setting, as it stands beside each result: the tables of ``matta.toml``."""

    convert: ConvertSettings = field(default_factory=ConvertSettings)
    data: DataSettings = field(default_factory=DataSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    search: SearchSettings = field(default_factory=SearchSettings)

    def update(self, values: Mapping[str, Any], origin: str) -> None:
        """Set values from nested tables, such as ``{"distill": {"lr": 0.1}}``.

        Raises ``MattaError``, which calls them by their ``origin``, for a table or a setting that
        there is not, and for a value of another type.
        """
        for section, table in values.items():
            if section not in SECTIONS:
                known = did_you_mean(section, SECTIONS)
                raise MattaError(f"{origin}: there is no table [{section}]{known}.")
            if not isinstance(table, Mapping):
                what = f"{section} is a table of settings, not {table!r}"
                raise MattaError(f"{origin}: {what}: put them below [{section}].")
            hints = get_type_hints(SECTIONS[section])
            for key, value in table.items():
                if gone.passed_over(f"{section}.{key}", value, origin):
                    continue
                if key not in hints:
                    known = did_you_mean(key, hints)
                    raise MattaError(f"{origin}: [{section}] has no setting {key!r}{known}.")
                value = typed(value, hints[key], f"{origin}: {section}.{key}")
                setattr(getattr(self, section), key, value)

    def text(self, sections: Iterable[str] = (), *, header: str = "", to_edit: bool = False) -> str:
        """The recipe, or these tables of it, as commented TOML that ``update`` reads back.

        to_edit: what is the default is there as a comment, so that it says nothing.
        """
        usual = Recipe()
        lines = [f"# {line}" if line else "#" for line in header.splitlines()]
        for section in sections or SECTIONS:
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
            for name, value in vars(getattr(self, section)).items():
                assignment = f"{name} = {toml(value)}"
                if to_edit and value == getattr(getattr(usual, section), name):
                    assignment = f"# {assignment}"
                lines.append(f"{assignment:<33} # {about(f'{section}.{name}').text}")
        return "\n".join(lines) + "\n"


SECTIONS: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(Recipe)}


def about(name: str) -> About:
    """What is known of a setting by its full name, such as ``distill.lr``."""
    section, _, key = name.partition(".")
    return SECTIONS[section].__dataclass_fields__[key].metadata["about"]


def called(name: str) -> str:
    """What an error calls a setting: its flag, and where it has none its full name."""
    known = about(name)
    flag = "--" + name.partition(".")[2].replace("_", "-")
    return (known.called or flag) if known.flag else name


def choices(name: str) -> tuple[str, ...]:
    """The words that a setting of this full name takes."""
    return tuple(about(name).choices)
