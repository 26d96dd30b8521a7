"""The settings of a conversion."""

from __future__ import annotations

from dataclasses import dataclass

from matta_cli.settings.setting import flag, setting


@dataclass
class ConvertSettings:
    """How a base is made into a TA."""

    source: str = setting(
        "", "the model to start from: a folder, a hub id, a timm name, or a state dict"
    )
    adapter: str = flag("", "the architecture's adapter; empty: found from the source")
    weights: str = flag(
        "", "the weights of a model that a function builds: a state dict (.safetensors, .pt)"
    )
    example: str = flag(
        "", "for the adapter auto: the model's inputs, 1x3x224x224, ids=1x16:int64 or pkg.mod:fn"
    )
    task: str = flag(
        "",
        "what the model is for, where that cannot be told (adapter auto, a state dict's head): "
        "causal_lm, text_classification, ...; empty: from the model, or the example",
    )
    drop_head: bool = flag(
        False, "leave out a model's head, such as an encoder's classifier, and nest the rest"
    )
    trim_vocab: bool = flag(
        False,
        "keep no tokens but those that --data has: fewer rows in tokenizer, embedding and output",
    )
    expand: float = flag(
        1.0,
        "the TA's width; at 1.0 Students nest inside the base itself, above it in a larger one",
        least=1,
        most=64,
        rule="it is the TA's width, from 1.0 to 64",
    )
    axes: list[str] = flag(
        [], "kinds of axes to nest, such as mlp, heads, hidden, depth; empty: the adapter's default"
    )
    sizes: list[str] = setting(
        [],
        "sizes of a width where its axes are not scaled alike, as '0.5: depth=0.75 mlp=0.5'",
        "Starbucks, arXiv 2410.13230",
    )
    target_params: list[str] = flag(
        [],
        "axes and widths by a budget: the most parameters, as 60M or 50% of the model's; several "
        "make a family",
    )
    target_memory: list[str] = flag([], "the same by the most bytes of weights, as 200MB or 50%")
    target_macs: list[str] = flag(
        [], "the same by the most multiply-accumulates of an example, as 3G or 50%"
    )
    order: str = flag(
        "auto",
        "order of units: {choices}",
        choices="auto: activation where data is given | activation | taylor | hessian "
        "| magnitude | none | prefix: layers as they come, so that depths share a forward; "
        "the rest as auto",
    )
    multiple: int = setting(
        8, "sizes of large axes (64 units and more) are rounded to multiples of this", above=0
    )
    tokenizer: str = flag("", "folder or hub id of the tokenizer, where the source has none")
    tolerance: float = setting(
        1e-4, "largest difference allowed between the base and the TA at width 1.0, relative"
    )
    seed: int = setting(0, "seed of the new units' weights")
