"""How much the order of units keeps of a base: untrained cuts by each criterion against cuts in a
random order.

Data: scikit-learn's digits for a ViT, the Python language reference for a GPT-2 (bytes), a table
with a known function for a ranker; each base is trained here, briefly. Each kind of axis is cut by
itself: to half and a quarter; layers to 5, 4 and 3 of 6, the residual stream to 7/8, 3/4 and half.
Each number is by how much the held-out loss of the cut exceeds the base's; random is the mean of
--orders random orders, random_range their range. relative_to_random is a criterion's sum over the
cuts of a kind by that of random: below 1 is better than chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from matta_adapters.mlp_ranker import Ranker
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import common
from matta_cli.models import plugins
from matta_cli.nested import grow, importance, view
from matta_cli.nested import sizes as nested_sizes
from matta_cli.nested.sizes import scaled

CRITERIA = ("activation", "taylor", "hessian", "magnitude")
# of six layers the first and last are kept in any order, and a quarter of a residual stream is near
# chance in any
SHARES = {"depth": (5 / 6, 4 / 6, 3 / 6), "hidden": (0.875, 0.75, 0.5)}
Batch = tuple[Any, Tensor]
Made = tuple[nn.Module, list[Batch], list[Batch]]  # a model, training and held-out batches


def digits() -> Made:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    batches = [(x[part], y[part]) for part in order.split(64)]
    args = {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 64,
        "depth": 6,
        "num_heads": 8,
    }
    return timm.create_model("vit_tiny_patch16_224", **args), batches[6:], batches[:6]


def text() -> Made:
    from pydoc_data.topics import topics

    data = np.frombuffer("\n".join(topics.values()).encode("ascii", "ignore"), dtype=np.uint8)
    rows = torch.tensor(data[: len(data) // 65 * 65].astype(np.int64)).view(-1, 65)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    batches = [(part[:, :-1], part[:, 1:]) for part in rows.split(32)]
    config = GPT2Config(
        vocab_size=128,
        n_positions=64,
        n_embd=64,
        n_layer=6,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config), batches[8:], batches[:8]


def table() -> Made:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 12, generator=generator)
    y = (
        torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * torch.randn(6000, generator=generator)
        > 0
    ).float()
    layers = [
        {"layer": "Linear", "out": 64},
        {"layer": "ReLU"},
        {"layer": "Linear", "out": 32},
        {"layer": "ReLU"},
    ]
    batches = [(x[part], y[part]) for part in torch.arange(6000).split(100)]
    return Ranker([], 12, [*layers, {"layer": "Linear", "out": 1}]), batches[10:], batches[:10]


def forward(model: Any, batch: Batch) -> Tensor:
    out = (
        model(input_ids=batch[0], use_cache=False)
        if isinstance(getattr(model, "config", None), GPT2Config)
        else model(batch[0])
    )
    return getattr(out, "logits", out)


def loss(model: Any, batch: Batch) -> Tensor:
    out, labels = forward(model, batch), batch[1]
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(out, labels)
    return F.cross_entropy(out.flatten(0, -2), labels.flatten())


def divergence(out: Tensor, of: Tensor, batch: Batch) -> Tensor:
    """KL, of a Student from the whole model."""
    if batch[1].is_floating_point():
        return F.binary_cross_entropy_with_logits(out, of.sigmoid())
    whole, own = (logits.flatten(0, -2).log_softmax(-1) for logits in (of, out))
    return F.kl_div(own, whole, log_target=True, reduction="batchmean")


def train(model: nn.Module, batches: list[Batch], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for step in range(steps):
        loss(model, batches[step % len(batches)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def held_out(model: Any, batches: list[Batch]) -> float:
    return sum(loss(model, batch).item() for batch in batches) / len(batches)


def measure(name: str, make: Callable[[], Made], steps: int, orders: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, training, held = make()
    train(model, training, steps)
    adapter, calibration = plugins.adapter(name), training[:8]
    axes = adapter.axes(model)
    full = held_out(model, held)

    def cut(order: dict[str, Tensor], some: list[Any], share: float) -> float:
        twin = adapter.build(model, {})
        twin.load_state_dict(model.state_dict())
        grow.reorder(twin, some, order)
        some = [replace(a, order=tuple(order[a.name].tolist())) if a.layers else a for a in some]
        sizes = {axis.name: scaled(axis.size, share, axis.step) for axis in some}
        return held_out(view.StudentView(adapter, twin.eval(), some, sizes).eval(), held) - full

    # as conversion.importance has it
    mixed = [axis for axis in axes if axis.layers or not grow.growable(model, axis)]
    lost = importance.removal(adapter, model, axes, mixed, calibration, forward, divergence)
    scores = {
        "activation": importance.activation(model, axes, calibration, forward) | lost,
        "taylor": importance.by_gradient(model, axes, calibration, loss, second=False),
        "hessian": importance.by_gradient(model, axes, calibration, loss, second=True),
        "magnitude": importance.magnitude(model, axes),
    }
    found: dict[str, Any] = {"held_out_loss": full, "relative_to_random": {}, "cuts": {}}
    for kind in dict.fromkeys(nested_sizes.kind(axis.name) for axis in axes):
        some = [axis for axis in axes if nested_sizes.kind(axis.name) == kind]
        for share in SHARES[kind] if some[0] in mixed else (0.5, 0.25):
            chance: list[float] = []
            for seed in range(orders):
                generator = torch.Generator().manual_seed(seed)
                draw = {a.name: torch.rand(a.size // a.step, generator=generator) for a in some}
                chance.append(
                    cut(
                        {
                            a.name: importance.order(draw[a.name], layers=bool(a.layers))
                            for a in some
                        },
                        some,
                        share,
                    )
                )
            row: dict[str, Any] = {
                "random": sum(chance) / orders,
                "random_range": [min(chance), max(chance)],
            }
            for criterion in CRITERIA:
                order = {
                    a.name: importance.order(scores[criterion][a.name], layers=bool(a.layers))
                    for a in some
                }
                row[criterion] = cut(order, some, share)
            found["cuts"][f"{kind} {share:g}"] = row
        rows = [row for name, row in found["cuts"].items() if name.startswith(f"{kind} ")]
        by_chance = sum(row["random"] for row in rows)
        found["relative_to_random"][kind] = {
            c: sum(row[c] for row in rows) / by_chance for c in CRITERIA
        }
    return found


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--orders", type=int, default=10, help="random orders")
    options = arguments.parse_args()
    steps, orders = (60, 3) if options.quick else (600, options.orders)
    cases = {"vit": digits, "gpt2": text, "mlp_ranker": table}
    found = {name: measure(name, make, steps, orders) for name, make in cases.items()}
    summary = {name: case["relative_to_random"] for name, case in found.items()}
    common.result("ordering", relative_to_random=summary, cases=found, quick=options.quick)


if __name__ == "__main__":
    main()
