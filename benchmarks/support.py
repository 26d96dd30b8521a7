"""What each architecture supports, tried on tiny models: writes the table of docs/support.md to
stdout.

    python -m benchmarks.support > docs/support.md

A row is one kind of axis. cut: a Student at half of it, run on views, equals the dense copy.
lossless: reordering its units (or keeping all layers) leaves the outputs as they are. grow: adding
units leaves them as they are. stock alone, stock all: whether the stock library can load a Student
at half of this axis alone, or at half of all of them. auto: whether tracing the module finds an
axis of the same places in the same tensors.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from matta_adapters.auto import Auto
from matta_adapters.mlp_ranker import Ranker
from torch import Tensor, nn

from benchmarks.support_words import DECIDED, EXPLAINED
from matta_cli.adapter import Adapter, Axis, Source
from matta_cli.errors import MattaError
from matta_cli.models import plugins
from matta_cli.nested import grow, sizes
from matta_cli.nested.view import StudentView, materialize

YES, NO = "yes", "no"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 97,
}


def gpt2(**more: Any) -> nn.Module:
    given = {"vocab_size": 97, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 16}
    given |= {"bos_token_id": 0, "eos_token_id": 0, **more}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**given))  # type: ignore[arg-type]


def like_llama(kind: str, **more: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        given = {
            **SMALL,
            "num_key_value_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "head_dim": 8,
            **more,
        }
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **given)
        )

    return make


def opt(**more: Any) -> nn.Module:
    given = {key: value for key, value in SMALL.items() if key != "intermediate_size"} | more
    config = transformers.OPTConfig(**given, ffn_dim=48)  # type: ignore[arg-type]
    return transformers.OPTForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SMALL))  # type: ignore[arg-type]


def classifier(kind: str, **more: Any) -> Callable[[], nn.Module]:
    """An encoder with a head that classifies texts."""

    def make() -> nn.Module:
        config = transformers.AutoConfig.for_model(kind, **{**SMALL, "pad_token_id": 1, **more})
        return transformers.AutoModelForSequenceClassification.from_config(config)

    return make


def image(name: str, **more: Any) -> Callable[[], nn.Module]:
    given = {"num_classes": 10, "pretrained_cfg_overlay": {"input_size": (3, 32, 32)}, **more}
    return lambda: timm.create_model(name, **given)


def like_vit(kind: str, named: str = "", **more: Any) -> Callable[[], nn.Module]:
    """named: the class, where its kind has several."""

    def make() -> nn.Module:
        given = {key: value for key, value in SMALL.items() if key != "vocab_size"}
        given |= {"image_size": 32, "patch_size": 8, **more}
        if kind.startswith("dinov2"):
            given["mlp_ratio"] = 2
            del given["intermediate_size"]
        if kind in ("clip", "siglip"):
            text = {**SMALL, "bos_token_id": 0, "eos_token_id": 0}
            given = {"vision_config": given, "text_config": text}
        config = transformers.AutoConfig.for_model(kind, num_labels=10, **given)
        if named:
            return getattr(transformers, named)(config)
        return transformers.AutoModelForImageClassification.from_config(config)

    return make


def ranker() -> nn.Module:
    layers = [
        {"layer": "Linear", "out": 16},
        {"layer": "BatchNorm1d"},
        {"layer": "ReLU"},
        {"layer": "Linear", "out": 8},
    ]
    return Ranker([(11, 4), (5, 6)], 3, [*layers, {"layer": "ReLU"}, {"layer": "Linear", "out": 1}])


CLASSIFIES = "ForImageClassification"
SPECIAL = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
IMAGE_TASK = "image_classification"
IMAGES, TOKENS = (
    ((torch.randn(2, 3, 32, 32),), {}),
    ((), {"input_ids": torch.arange(18).view(2, 9)}),
)
ROWS = ((), {"dense": torch.randn(7, 3), "categorical": torch.arange(14).view(7, 2) % 5})
# architecture: adapter, how to make it, its inputs
ARCHITECTURES: dict[
    str, tuple[str, Callable[[], nn.Module], tuple[tuple[Any, ...], dict[str, Any]]]
] = {
    "GPT-2": ("gpt2", gpt2, TOKENS),
    "Llama": ("llama", like_llama("llama"), TOKENS),
    "Mistral": ("llama", like_llama("mistral"), TOKENS),
    "Qwen2": ("llama", like_llama("qwen2"), TOKENS),
    "Qwen3": ("llama", like_llama("qwen3"), TOKENS),
    "Gemma 2": ("gemma", like_llama("gemma2"), TOKENS),
    "Gemma 3": ("gemma", like_llama("gemma3_text"), TOKENS),
    "Phi-3": ("phi3", like_llama("phi3"), TOKENS),
    "GPT-NeoX": ("gpt_neox", like_llama("gpt_neox"), TOKENS),
    "OPT": ("opt", opt, TOKENS),
    "BERT": ("bert", bert, TOKENS),
    "BERT, classifier": ("bert", classifier("bert"), TOKENS),
    "RoBERTa, classifier": ("roberta", classifier("roberta"), TOKENS),
    "XLM-R, classifier": ("roberta", classifier("xlm-roberta"), TOKENS),
    "CamemBERT, classifier": ("roberta", classifier("camembert"), TOKENS),
    "DistilBERT, classifier": ("distilbert", classifier("distilbert"), TOKENS),
    "ELECTRA, classifier": ("electra", classifier("electra"), TOKENS),
    "MPNet, classifier": ("mpnet", classifier("mpnet"), TOKENS),
    "ModernBERT, classifier": ("modernbert", classifier("modernbert", **SPECIAL), TOKENS),
    "DeBERTa-v3, classifier": ("deberta", classifier("deberta-v2", **DEBERTA), TOKENS),
    "ViT": ("vit", image("vit_tiny_patch16_224", **VIT), IMAGES),
    "DeiT, distilled": ("vit", image("deit_tiny_distilled_patch16_224", **VIT), IMAGES),
    "ViT, attention pool": (
        "vit",
        image("vit_tiny_patch16_224", **VIT, global_pool="map", class_token=False),
        IMAGES,
    ),
    "ViT of transformers": ("vit_transformers", like_vit("vit"), IMAGES),
    "DeiT of transformers": ("deit", like_vit("deit", f"DeiT{CLASSIFIES}"), IMAGES),
    "DeiT of transformers, distilled": (
        "deit_distilled",
        like_vit("deit", f"DeiT{CLASSIFIES}WithTeacher"),
        IMAGES,
    ),
    "BEiT": ("beit", like_vit("beit", use_relative_position_bias=True), IMAGES),
    "DINOv2": ("dinov2", like_vit("dinov2"), IMAGES),
    "DINOv2, gated": ("dinov2", like_vit("dinov2", use_swiglu_ffn=True), IMAGES),
    "DINOv2, registers": ("dinov2_with_registers", like_vit("dinov2_with_registers"), IMAGES),
    "CLIP": ("clip", like_vit("clip"), IMAGES),
    "SigLIP": ("siglip", like_vit("siglip"), IMAGES),
    "MLP ranker": ("mlp_ranker", ranker, ROWS),
    "ResNet-18": ("auto", image("resnet18"), IMAGES),
    "MobileNetV3": ("auto", image("mobilenetv3_small_050"), IMAGES),
    "ConvNeXt": ("auto", image("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), IMAGES),
    "EfficientNet": ("auto", image("test_efficientnet"), IMAGES),
    "RegNet": ("auto", image("regnetx_002"), IMAGES),
    "Swin": (
        "auto",
        image(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        IMAGES,
    ),
    "MLP-Mixer": ("auto", image("mixer_s16_224", img_size=32), IMAGES),
}


@torch.no_grad()
def outputs(model: Any, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    out = model(*inputs[0], **inputs[1])
    return getattr(out, "logits", getattr(out, "last_hidden_state", out))


def half(axes: list[Axis]) -> dict[str, int]:
    return {axis.name: max(axis.step, axis.size // 2 // axis.step * axis.step) for axis in axes}


def same(a: Tensor, b: Tensor) -> str:
    return (
        YES
        if a.shape == b.shape
        and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(a.abs().max())))
        else NO
    )


def opened(name: str, make: Callable[[], nn.Module], text: str) -> tuple[Adapter, nn.Module]:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            nn.init.normal_(parameter, std=0.1)
    adapter = plugins.adapter(name)
    return adapter, adapter.load(
        Source(text, module=model, example="1x3x32x32", task="" if name != "auto" else IMAGE_TASK)
    )


def loadable(adapter: Adapter, model: nn.Module, axes: list[Axis]) -> str:
    if not adapter.loader:
        return "matta"
    with torch.device("meta"):
        student = adapter.build(model, sizes.own_sizes(axes, half(axes)))
    return NO if adapter.unsupported(student) else adapter.loader.partition(".")[0]


def traced(
    name: str, make: Callable[[], nn.Module], text: str
) -> list[set[tuple[str, int]]] | None:
    """The places of each axis that tracing finds in a module; None where its kind of model is none
    of auto's.
    """
    example, task = (
        ("1x3x32x32", IMAGE_TASK)
        if ARCHITECTURES[text][2] is IMAGES
        else ("input_ids=1x9:int64", "causal_lm")
    )
    if not plugins.adapter(name).task or name == "mlp_ranker":  # of encoders of texts
        return None
    adapter = Auto()
    torch.manual_seed(0)
    try:
        model = adapter.load(Source(text, module=make().eval(), example=example, task=task))
        return [
            {(place.tensor, place.dim) for place in axis.slices} for axis in adapter.axes(model)
        ]
    except MattaError as error:
        sys.stderr.write(f"{text}, traced: {error}\n")
        return []


def rows(text: str) -> list[list[str]]:
    name, make, inputs = ARCHITECTURES[text]
    adapter, model = opened(name, make, text)
    axes, expected = adapter.axes(model), outputs(model, inputs)
    found = traced(name, make, text) if name != "auto" else None
    table = []
    groups: dict[str, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(
            "what tracing finds" if name == "auto" else sizes.kind(axis.name), []
        ).append(axis)
    for kind, some in groups.items():
        view = StudentView(adapter, model, some, half(some)).eval()
        dense = materialize(adapter, model, some, half(some))
        twin = adapter.build(model, {})
        twin.load_state_dict(model.state_dict())
        generator = torch.Generator().manual_seed(0)
        grow.reorder(
            twin,
            some,
            {a.name: torch.randperm(a.size // a.step, generator=generator) for a in some},
        )
        grows = [axis for axis in some if grow.growable(model, axis)]
        larger = (
            outputs(
                grow.grow(adapter, model, some, {a.name: a.size + a.step for a in grows}), inputs
            )
            if grows
            else None
        )
        grown = NO if larger is None else same(expected, larger)
        grown += f", {len(grows)} of {len(some)}" if 0 < len(grows) < len(some) else ""
        first = {(place.tensor, place.dim) for place in some[0].slices}
        auto = "" if found is None else YES if any(first <= places for places in found) else NO
        table.append(
            [
                text,
                name,
                f"`{kind}` ({len(some)})",
                same(outputs(view, inputs), outputs(dense, inputs)),
                same(expected, outputs(twin.eval(), inputs)),
                grown,
                loadable(adapter, model, some),
                loadable(adapter, model, axes),
                auto,
            ]
        )
    return table


def main() -> None:
    warnings.filterwarnings("ignore")
    sys.stderr.write(f"{(__doc__ or '').strip()}\n")
    header = [
        "architecture",
        "adapter",
        "axes",
        "cut",
        "lossless",
        "grow",
        "stock alone",
        "stock all",
        "auto",
    ]
    lines = [
        "# Support",
        "",
        "Made by `python -m benchmarks.support`, which tries each cell on a tiny model:",
        "",
        *(f"- {line}" for line in EXPLAINED),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for text in ARCHITECTURES:
        sys.stderr.write(f"{text}\n")
        lines += ["| " + " | ".join(row) + " |" for row in rows(text)]
    versions = f"transformers {transformers.__version__}, timm {timm.__version__}"
    versions += f", torch {torch.__version__.partition('+')[0]}"
    print("\n".join([*lines, "", f"Tried with {versions}.", *DECIDED]))


if __name__ == "__main__":
    main()
