"""How many examples the order of units by activation needs.

The models of ``ordering``, or with --model and --text a language model of yours (a folder of
transformers, a text file) instead: units are ordered by fewer and by more examples (of text in
tokens).
correlation: Spearman's of the scores with those by the most examples, the mean over the axes.
cut: by how much the held-out loss of the MLPs' halves exceeds the model's. holds: with what convert
uses, no cut is worse by a tenth than with the most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.ordering import Batch, Made, digits, forward, held_out, table, text, train
from matta_cli.models import plugins
from matta_cli.models.load import load_model
from matta_cli.models.tokenizer import open_tokenizer
from matta_cli.nested import grow, importance, view
from matta_cli.nested.sizes import scaled

BOUND = 1.1
# name -> a model and its data, how many examples of a batch count, and those that are compared:
# the middle one is what convert uses
CASES: dict[str, tuple[Callable[[], Made], int, tuple[int, int, int]]] = {
    "vit": (digits, 1, (16, 128, 1024)),
    "gpt2": (text, 64, (1024, 8192, 65536)),
    "mlp_ranker": (table, 1, (16, 128, 4096)),
}


def own_model(folder: Path, data: Path, length: int, most: int, held: int) -> Made:
    """A language model, and sequences of a text that are spread over it."""
    model, _ = load_model(str(folder), "causal_lm")
    config: Any = model.config
    tokenizer = open_tokenizer(folder, "", config.vocab_size)
    tokenizer.model_max_length = 10**12
    ids = torch.tensor(tokenizer(data.read_text(encoding="utf-8"))["input_ids"])
    rows = ids[: len(ids) // (length + 1) * (length + 1)].view(-1, length + 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    batches = [(row[None, :-1], row[None, 1:]) for row in rows]
    model.config.use_cache = False
    return model, batches[held : held + most // length], batches[:held]


def plain(model: Any, batch: Batch) -> Tensor:
    """``ordering.forward`` of any model."""
    if getattr(model, "config", None) is None:
        return forward(model, batch)
    out = model(input_ids=batch[0])
    return getattr(out, "logits", out)


def few(batches: Sequence[Batch], examples: int) -> list[Batch]:
    """The first so many examples of batches."""
    found = []
    for x, y in batches:
        if examples > 0:
            found.append((x[:examples], y[:examples]))
        examples -= len(x)
    return found


def rank(scores: Tensor) -> Tensor:
    return scores.argsort().argsort().double()


def measure(made: Made, each: int, counts: Sequence[int], adapter: Any) -> dict[str, Any]:
    """each: what one example counts."""
    model, training, held = made
    axes = [
        axis for axis in adapter.axes(model) if axis.name.partition(".")[0] in ("mlp", "hidden")
    ]
    axes = [axis for axis in axes if not axis.layers and grow.growable(model, axis)]
    full, found = held_out(model, held), {}
    scores: dict[int, dict[str, Tensor]] = {}
    for count in counts:
        batches = few(training, count // each)
        scores[count] = importance.activation(model, axes, batches, plain)
    for count in counts:
        pairs = [(rank(scores[count][a.name]), rank(scores[counts[-1]][a.name])) for a in axes]
        close = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
        twin: nn.Module = adapter.build(model, {})
        twin.load_state_dict(model.state_dict())
        orders = {axis.name: importance.order(scores[count][axis.name]) for axis in axes}
        grow.reorder(twin, axes, orders)
        sizes = {axis.name: scaled(axis.size, 0.5, axis.step) for axis in axes}
        cut = view.StudentView(adapter, twin.eval(), axes, sizes).eval()
        found[str(count)] = {
            "correlation": sum(close) / len(close),
            "cut": held_out(cut, held) - full,
        }
    cuts = [found[str(count)]["cut"] for count in counts]
    return {"held_out_loss": full, "examples": found, "ratio": cuts[-2] / cuts[-1]}


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--model", type=Path, help="a folder of a language model")
    arguments.add_argument("--text", type=Path, help="a text file, for --model")
    options = arguments.parse_args()
    steps = 60 if options.quick else 600
    found = {}
    for name, (make, each, counts) in () if options.model else CASES.items():
        torch.manual_seed(0)
        made = make()
        train(made[0], made[1], steps)
        found[name] = measure(made, each, counts, plugins.adapter(name))
    if options.model:
        length, own = 512, (1024, 8192, 65536)
        made = own_model(options.model, options.text, length, own[-1], held=8)
        kind: Any = made[0].config
        adapter = plugins.adapter("gpt2" if kind.model_type == "gpt2" else "llama")
        found[options.model.name] = measure(made, length, own, adapter)
    worst = max(case["ratio"] for case in found.values())
    common.result(
        "ordering_examples",
        cases=found,
        ratio=worst,
        bound=BOUND,
        holds=worst <= BOUND,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
