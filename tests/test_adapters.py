"""Every adapter runs the same suite on real, tiny models.

Stock libraries then load what it saved, without matta.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from encoder_models import ENCODERS, tokens
from matta_adapters.decoders import OPT, Gemma, GPTNeoX, Llama, Phi3
from matta_adapters.encoder import Encoder
from matta_adapters.encoders import Bert, Deberta, DistilBert, Electra, ModernBert, MPNet, Roberta
from matta_adapters.gpt2 import GPT2
from matta_adapters.mlp_ranker import MLPRanker, Ranker
from matta_adapters.vision import (
    CLIP,
    BEiT,
    DeiT,
    DeiTDistilled,
    Dinov2,
    Dinov2WithRegisters,
    ImageClassifier,
    SigLIP,
)
from matta_adapters.vision import ViT as HFViT
from matta_adapters.vit import ViT
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    DeiTForImageClassificationWithTeacher,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedModel,
)

from matta_cli.adapter import Adapter, Slice, Source
from matta_cli.errors import MattaError
from matta_cli.measure import cost
from matta_cli.models import plugins
from matta_cli.models.checkpoint import strip_prefixes
from matta_cli.models.load import load_model, own_memory
from matta_cli.models.save import save_model
from matta_cli.models.source import _OTHER_FOLDERS, open_source
from matta_cli.models.tokenizer import copy_companions
from matta_cli.nested import grow
from matta_cli.nested import sizes as nested_sizes
from matta_cli.nested.sizes import full_sizes, nested_axes, own_sizes, sizes_at
from matta_cli.nested.view import StudentView, materialize
from matta_cli.tasks.task import raw
from matta_cli.testing import check_adapter

ADAPTERS = {
    "gpt2": GPT2,
    "llama": Llama,
    "gemma": Gemma,
    "phi3": Phi3,
    "gpt_neox": GPTNeoX,
    "opt": OPT,
    "vit": ViT,
    "vit_transformers": HFViT,
    "deit": DeiT,
    "deit_distilled": DeiTDistilled,
    "beit": BEiT,
    "dinov2": Dinov2,
    "dinov2_with_registers": Dinov2WithRegisters,
    "clip": CLIP,
    "siglip": SigLIP,
    "mlp_ranker": MLPRanker,
    "bert": Bert,
    "roberta": Roberta,
    "electra": Electra,
    "distilbert": DistilBert,
    "mpnet": MPNet,
    "modernbert": ModernBert,
    "deberta": Deberta,
}


def gpt2(**changes) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    plain = {"vocab_size": 97, "n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 16}
    config = GPT2Config(**{**plain, "bos_token_id": 1, "eos_token_id": 1, **changes})
    model = GPT2LMHeadModel(config).eval()
    # biases start at zero, which would hide a mistake in them
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def llama(kind: str = "llama", **changes) -> nn.Module:
    """Six query heads of 10 channels on three keys; odd MLP.

    It is 30 wide, and so not as wide as its heads together.
    """
    plain = {"hidden_size": 30, "intermediate_size": 37, "num_attention_heads": 6}
    # which has no such field: a sixth of the width
    plain |= {"hidden_size": 36} if kind == "qwen2" else {"head_dim": 10}
    plain |= {"num_key_value_heads": 3, "max_position_embeddings": 16, "pad_token_id": 0}
    return _decoder(kind, **{**plain, **changes})


def _decoder(kind: str, **settings) -> nn.Module:
    """One with weights at which nothing is all but constant."""
    torch.manual_seed(0)
    plain = {"vocab_size": 97, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 1}
    config = AutoConfig.for_model(kind, **{**plain, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        elif "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.2)
        else:
            # at the library's 0.02 attention is all but uniform
            nn.init.normal_(parameter, std=0.2)
    return model


def neox(**changes) -> nn.Module:
    plain = {"hidden_size": 24, "num_attention_heads": 3, "max_position_embeddings": 16}
    return _decoder("gpt_neox", **{**plain, "intermediate_size": 37, **changes})


def opt(**changes) -> nn.Module:
    plain = {"hidden_size": 24, "num_attention_heads": 3, "ffn_dim": 37, "pad_token_id": 1}
    return _decoder("opt", **{**plain, "max_position_embeddings": 16, **changes})


def vit(name: str = "vit_tiny_patch16_224", **changes) -> nn.Module:
    torch.manual_seed(0)
    plain = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 64,
        "num_heads": 2,
        "depth": 2,
        "num_classes": 7,
    }
    model = timm.create_model(name, **{**plain, **changes}).eval()
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            nn.init.normal_(parameter, std=0.1)
    return model


def images(kind: str, cls=None, **changes) -> nn.Module:
    """An image classifier of transformers: three heads of 8 channels, two blocks, odd MLPs."""
    torch.manual_seed(0)
    own = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    own |= {"image_size": 32, "patch_size": 8, "num_labels": 5}
    own |= {"mlp_ratio": 3} if kind.startswith("dinov2") else {"intermediate_size": 37}
    own |= changes
    if kind in ("clip", "siglip"):
        text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        text |= {"intermediate_size": 8, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
        labels = own.pop("num_labels")
        own = {"vision_config": own, "text_config": text, "num_labels": labels}
    config = AutoConfig.for_model(kind, **own)
    config.architectures = []  # by which transformers tells DeiT's classes apart
    model = cls(config) if cls else AutoModelForImageClassification.from_config(config)
    model.eval()
    for name, parameter in model.named_parameters():
        one = ("norm" in name and name.endswith("weight")) or "lambda" in name
        nn.init.normal_(parameter, float(one), 0.2)
    return model


def bert(pooler: bool = True, **changes) -> BertModel:
    torch.manual_seed(0)
    plain = {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 40,
    }
    model = BertModel(
        BertConfig(**{**plain, "max_position_embeddings": 16, **changes}), add_pooling_layer=pooler
    ).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def ranker(fields, dense: int, *hidden: list[dict]) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(
        fields,
        dense,
        [*(layer for group in hidden for layer in group), {"layer": "Linear", "out": 1}],
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model


def layer(out: int, *others: str, **settings) -> list[dict]:
    return [{"layer": "Linear", "out": out, **settings}, *({"layer": other} for other in others)]


FIELDS = [(11, 4), (5, 3)]
MODELS = {
    "gpt2": lambda: gpt2(),
    "gpt2-n_inner": lambda: gpt2(n_inner=33),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2-scaled": lambda: gpt2(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    "gpt2-eager-relu": lambda: gpt2(
        attn_implementation="eager", activation_function="relu", resid_pdrop=0.3
    ),
    "llama-llama": lambda: llama(),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-ungrouped": lambda: llama(num_key_value_heads=6, hidden_act="gelu"),
    "llama-mistral": lambda: llama("mistral", sliding_window=3),
    "llama-qwen2": lambda: llama(
        "qwen2", use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "llama-qwen3": lambda: llama(
        "qwen3", num_key_value_heads=1, tie_word_embeddings=True, hidden_size=31
    ),
    "gemma-gemma2": lambda: llama(
        "gemma2", final_logit_softcapping=3.0, attn_logit_softcapping=2.0, sliding_window=3
    ),
    "gemma-gemma2-alike": lambda: llama("gemma2", layer_types=["full_attention"] * 2),
    "gemma-gemma3": lambda: llama("gemma3_text", sliding_window=3, query_pre_attn_scalar=20),
    "phi3": lambda: llama("phi3"),
    "phi3-partial": lambda: llama("phi3", num_key_value_heads=6, partial_rotary_factor=0.4),
    "gpt_neox": lambda: neox(),
    "gpt_neox-in-turn": lambda: neox(use_parallel_residual=False, tie_word_embeddings=True),
    "gpt_neox-no-bias": lambda: neox(attention_bias=False, hidden_act="relu"),
    "opt": lambda: opt(),
    "opt-narrow": lambda: opt(word_embed_proj_dim=10, do_layer_norm_before=False),
    "opt-plain": lambda: opt(enable_bias=False, layer_norm_elementwise_affine=False),
    "opt-untied": lambda: opt(tie_word_embeddings=False),
    "vit-token": lambda: vit(),
    "vit-average": lambda: vit(global_pool="avg", class_token=False, num_classes=3),
    "vit-average-with-token": lambda: vit(global_pool="avg", fc_norm=False),
    "vit-odd": lambda: vit(img_size=(24, 40), in_chans=1, mlp_ratio=1.7, qkv_bias=False),
    "vit-registers": lambda: vit(reg_tokens=3, no_embed_class=True, init_values=0.1),
    "vit-norms": lambda: vit(qk_norm=True, scale_mlp_norm=True, pre_norm=True),
    "vit-attention-pool": lambda: vit(global_pool="map", class_token=False),
    "vit-deit-distilled": lambda: vit("deit_tiny_distilled_patch16_224"),
    "vit-deit3": lambda: vit("deit3_small_patch16_224"),
    "vit_transformers": lambda: images("vit"),
    "vit_transformers-odd": lambda: images(
        "vit", qkv_bias=False, image_size=(24, 40), patch_size=(8, 4), num_channels=1, num_labels=1
    ),
    "vit_transformers-eager": lambda: images(
        "vit", attn_implementation="eager", hidden_act="relu", hidden_dropout_prob=0.3
    ),
    "deit": lambda: images("deit"),
    "deit_distilled": lambda: images("deit", DeiTForImageClassificationWithTeacher, num_labels=3),
    "beit": lambda: images("beit", use_relative_position_bias=True),
    "beit-odd": lambda: images(
        "beit",
        image_size=24,
        use_mask_token=True,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=0.0,
        use_mean_pooling=False,
    ),
    "dinov2": lambda: images("dinov2"),
    "dinov2-odd": lambda: images("dinov2", qkv_bias=False, use_mask_token=False, mlp_ratio=1),
    "dinov2-gated": lambda: images("dinov2", use_swiglu_ffn=True, drop_path_rate=0.2),
    "dinov2_with_registers": lambda: images("dinov2_with_registers", num_register_tokens=3),
    "dinov2_with_registers-gated": lambda: images(
        "dinov2_with_registers", use_swiglu_ffn=True, num_register_tokens=1
    ),
    "clip": lambda: images("clip"),
    "clip-odd": lambda: images("clip", hidden_act="gelu", num_channels=1, image_size=16),
    "siglip": lambda: images("siglip"),
    "siglip-no-pooling": lambda: images("siglip", vision_use_head=False, patch_size=16),
    "bert": lambda: bert(),
    "bert-no-pooler": lambda: bert(pooler=False, type_vocab_size=1),
    "bert-eager-relu": lambda: bert(
        attn_implementation="eager", hidden_act="relu", hidden_dropout_prob=0.3
    ),
    **ENCODERS,
    "mlp_ranker-both": lambda: ranker(FIELDS, 6, layer(8, "ReLU"), layer(5, "GELU")),
    "mlp_ranker-batchnorm": lambda: ranker(
        FIELDS, 6, layer(8, "BatchNorm1d", "ReLU", "Dropout"), layer(6, "SiLU", bias=False)
    ),
    "mlp_ranker-layernorm": lambda: ranker(
        FIELDS, 6, layer(8, "LayerNorm", "ReLU"), layer(6, "ReLU", "BatchNorm1d")
    ),
    "mlp_ranker-embeddings": lambda: ranker(FIELDS, 0, layer(8, "ReLU")),
    "mlp_ranker-dense": lambda: ranker([], 6, layer(8, "ReLU"), layer(4, "Tanh")),
    "mlp_ranker-linear": lambda: ranker(FIELDS, 2),
}


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    if hasattr(model, "generate"):
        return {"input_ids": torch.randint(model.config.vocab_size, (2, 9), generator=g)}
    if isinstance(model, PreTrainedModel) and not hasattr(model, "pretrained_cfg"):
        return tokens(model)
    if isinstance(model, Ranker):
        fields = [torch.randint(cardinality, (7,), generator=g) for cardinality, _ in model.fields]
        given = {"categorical": torch.stack(fields, 1)} if fields else {}
        return given | ({"dense": torch.randn(7, model.dense, generator=g)} if model.dense else {})
    image = torch.randn(2, *model.pretrained_cfg["input_size"], generator=g)
    return {"pixel_values" if hasattr(model, "config") else "x": image}


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return raw(model(**batch))


def made(name: str) -> tuple[Adapter, nn.Module, dict[str, torch.Tensor]]:
    adapter = ADAPTERS[name.split("-")[0]]()
    model = MODELS[name]()
    if isinstance(adapter, (ViT, ImageClassifier, Gemma)):
        # sets the true input size, or the factor of embeddings
        model = adapter.load(Source(name, module=model))
    if isinstance(adapter, Encoder):
        model = adapter.load(Source(name, module=model))  # says what the model is for
    return adapter, model, inputs(model)


def test_every_registered_adapter_is_in_the_suite():
    assert set(plugins.adapters()) >= set(ADAPTERS)
    assert {name.split("-")[0] for name in MODELS} == set(ADAPTERS)


# of an encoder that opens with a head for texts, the one for words is little news; so is a DeiT
# beside a ViT
ALIKE = [name for name in ENCODERS if name.endswith("-token") and not name.startswith("bert")]
ALIKE += ["deit", "deit_distilled", "beit-odd"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in MODELS]
)
def test_contract(name):
    adapter, model, batch = made(name)
    check_adapter(adapter, model, batch)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("bert")])
def test_bert_axes(name):
    _, model, _ = made(name)
    axes = Bert().axes(model)
    hidden = ["hidden"] if "-sequence" in name or "-token" in name else []
    names = ["mlp.0", "mlp.1", "heads.0", "heads.1", *hidden, "depth"]
    assert [axis.name for axis in axes] == names
    assert [axis.step for axis in axes] == [1, 1, 8, 8, *[8 for _ in hidden], 1]
    assert [grow.growable(model, axis) for axis in axes] == [True] * 4 + [False] * len(names[4:])


@pytest.mark.parametrize("name", MODELS)
def test_training_mode_and_dropout_survive_build(name):
    adapter, model, _ = made(name)
    built = adapter.build(model, {})
    assert [type(m) for m in built.modules()] == [type(m) for m in model.modules()]
    assert [m.p for m in built.modules() if isinstance(m, nn.Dropout)] == [
        m.p for m in model.modules() if isinstance(m, nn.Dropout)
    ]


class Forgetful(MLPRanker):
    """An adapter that forgets one place where a hidden unit appears, as authors do."""

    def axes(self, model):
        axes = super().axes(model)
        return [
            replace(a, slices=tuple(s for s in a.slices if not self.forgotten(s))) for a in axes
        ]

    def forgotten(self, s: Slice) -> bool:
        return s.tensor == "mlp.0.bias"


class WrongDimension(MLPRanker):
    def axes(self, model):
        axes = super().axes(model)
        swapped = [
            Slice(s.tensor, s.dim ^ s.outgoing, s.blocks, s.start, s.outgoing)
            for s in axes[-1].slices
        ]
        return [
            *axes[:-1],
            type(axes[-1])(axes[-1].name, axes[-1].size, tuple(swapped), axes[-1].step),
        ]


class Careless(MLPRanker):
    """Builds by changing the model it was given."""

    def build(self, model, sizes):
        with torch.no_grad():
            model.mlp[0].weight.mul_(1.5)
        return super().build(model, sizes)


class NotOutgoing(MLPRanker):
    """Forgets to say which weights read the units, so growth cannot silence them."""

    def axes(self, model):
        plain = super().axes(model)
        return [
            type(a)(
                a.name,
                a.size,
                tuple(Slice(s.tensor, s.dim, s.blocks, s.start) for s in a.slices),
                a.step,
            )
            for a in plain
        ]


@pytest.mark.parametrize("adapter", [Forgetful, WrongDimension, Careless, NotOutgoing])
def test_kit_catches(adapter):
    _, model, batch = made("mlp_ranker-both")
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        check_adapter(adapter(), model, batch)


STOCK = """
import sys, torch, {library}
torch.set_num_threads(1)  # with more of them, sums differ in their last bit from process to process
batch = torch.load({batch!r})
model = {loader}.eval()
with torch.no_grad():
    out = model(**batch)
torch.save(getattr(out, "logits", getattr(out, "last_hidden_state", out)), {out!r})
assert not any(name.startswith("matta") for name in sys.modules)
"""


STOCK_MODELS = ("gpt2-n_inner", "llama-qwen2", "vit-deit-distilled", "bert")
STOCK_MODELS += ("vit_transformers", "dinov2", "siglip")
IMAGES = ("clip", "vit_transformers-odd", "dinov2-odd", "dinov2-gated", "clip-odd")
IMAGES += ("dinov2_with_registers", "dinov2_with_registers-gated", "siglip-no-pooling")
IMAGES += ("deit", "deit_distilled", "beit", "beit-odd")
CLASSIFIERS = [name for name in ENCODERS if name.endswith(("-sequence", "-token"))]
DECODERS = ("gemma-gemma2", "gemma-gemma3", "phi3", "gpt_neox", "opt", "opt-narrow")
OTHERS = ("gpt2-untied", "llama-biases", "vit-average", "vit-odd", "vit-registers")


@pytest.mark.parametrize(
    "names",
    [
        STOCK_MODELS,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (DECODERS, CLASSIFIERS, OTHERS, IMAGES)),
    ],
    ids=["usual", "decoders", "encoders", "others", "images"],
)
def test_stock_reload(names, tmp_path):
    """Students of MLPs alone, and of all axes, by the stock libraries in one process of its own."""
    script, expected = "", {}
    for name in names:
        adapter, model, batch = made(name)
        batch_file = str(tmp_path / f"{name}-batch.pt")
        torch.save(batch, batch_file)
        # a Qwen2 of several kinds of layers has no depth
        there = nested_sizes.kinds(full_sizes(adapter.axes(model)))
        # without a residual stream that shrinks, too, heads share out the width
        alone = "hidden" not in there
        for kinds in (["mlp"], ["mlp", "heads", "hidden", "depth"]):
            axes = nested_axes(
                adapter, model, [k for k in kinds if k in there and not (alone and k == "heads")]
            )
            small = {"mlp": 13, "depth": 1}
            if name.startswith("dinov2"):  # which has a whole ratio for its MLPs
                small["mlp"] = 16 if "gated" in name else 24
            sizes = {axis.name: small.get(nested_sizes.kind(axis.name), axis.step) for axis in axes}
            student = adapter.build(model, own_sizes(axes, sizes))
            assert adapter.unsupported(student) == ""
            for parameter in student.parameters():
                nn.init.normal_(parameter, std=0.1)
            folder, out = (
                tmp_path / f"it's a student of {name}, {len(kinds)}",
                tmp_path / f"{name}-{len(kinds)}.pt",
            )
            folder.mkdir()
            adapter.save(student, folder)
            assert not [
                path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")
            ]
            loader = adapter.loader.format(folder=repr(str(folder)))
            script += STOCK.format(
                library=loader.split(".")[0], loader=loader, batch=batch_file, out=str(out)
            )
            with cost.threads(1):
                expected[out] = logits(student.eval(), batch)
    # -I: neither the working directory nor PYTHONPATH, so that matta is not there by accident
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ.copy(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for out, wanted in expected.items():
        assert torch.equal(torch.load(out), wanted), out.name


def test_vit_preprocessing_survives(tmp_path):
    adapter = ViT()
    model = adapter.load(Source("m", module=vit("deit_tiny_patch16_224", img_size=40)))
    adapter.save(adapter.build(model, {}), tmp_path)
    reloaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    config = timm.data.resolve_model_data_config(reloaded)
    assert tuple(config["input_size"]) == (3, 40, 40)
    assert tuple(config["mean"]) == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("dim", "hidden"), [(64, 13), (192, 101), (384, 999), (768, 2047), (49, 1), (49, 8)]
)
def test_mlp_ratio_round_trips(dim, hidden):
    from matta_adapters.vit import mlp_ratio_of

    assert int(dim * json.loads(json.dumps(mlp_ratio_of(hidden, dim)))) == hidden


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied", "vit-token", "vit-odd"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mlp.0": 5, "mlp.1": 9}, r"per-layer MLP widths \(5, 9\)"),
        (
            {"heads.0": 1, "heads.1": 2},
            "as many channels in its heads .* as in its residual stream",
        ),
        ({"hidden": 1}, "as many channels in its heads .* as in its residual stream"),
        ({"depth": 1, "heads.0": 1}, "as many channels in its heads"),
        ({"depth": 3, "mlp.0": 5, "mlp.1": 5, "mlp.2": 9}, r"per-layer MLP widths \(5, 5, 9\)"),
    ],
    ids=str,
)
def test_what_the_stock_format_cannot_express_is_saved_all_the_same(name, change, reason, tmp_path):
    adapter, model, batch = made(name)
    steps = {axis.name: axis.step for axis in adapter.axes(model)}
    student = adapter.build(
        model, {axis: steps.get(axis, 1) * size for axis, size in change.items()}
    ).eval()
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.1)
    found = {axis.name: axis.size // axis.step for axis in adapter.axes(student)}
    assert {axis: found[axis] for axis in change} == change
    assert re.search(reason, adapter.unsupported(student))
    assert save_model(adapter, student, tmp_path) == adapter.unsupported(student)
    # the stock library is not led to believe that it can load this
    assert not (tmp_path / "config.json").exists()
    reloaded = type(adapter)().load(open_source(str(tmp_path)))
    assert torch.equal(logits(reloaded, batch), logits(student, batch))
    assert adapter.axes(reloaded) == adapter.axes(student)


def test_a_model_of_another_format_leans_on_one_that_the_library_has(tmp_path):
    """A Llama with twice its heads: its width is no multiple of these, nor is the smallest."""
    adapter, model, batch = made("llama-llama")
    student = adapter.build(model, {"heads.0": 60, "heads.1": 60}).eval()
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert "12 heads" in save_model(adapter, student, tmp_path)
    reloaded = type(adapter)().load(open_source(str(tmp_path)))
    assert torch.equal(logits(reloaded, batch), logits(student, batch))


@pytest.mark.parametrize("kinds", ["mlp", "heads depth"], ids=["stock", "own"])
@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2-untied", "llama-qwen3", "vit-token", "bert-no-pooler", "mlp_ranker-both"]
)
def test_a_student_written_from_views_is_that_saved_whole(name, kinds, tmp_path):
    adapter, model, _ = made(name)
    wanted = (
        (*kinds.split(), "embedding", "hidden") if name.startswith("mlp_ranker") else kinds.split()
    )
    axes = [axis for axis in adapter.axes(model) if nested_sizes.kind(axis.name) in wanted]
    sizes = sizes_at(axes, full_sizes(axes), 0.5)
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    whole.mkdir()
    streamed.mkdir()
    reason = save_model(adapter, materialize(adapter, model, axes, sizes), whole)
    student = adapter.build(model, own_sizes(axes, sizes))
    assert (
        save_model(adapter, student, streamed, StudentView(adapter, model, axes, sizes).state())
        == reason
    )
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert files == [
        path.relative_to(streamed) for path in sorted(streamed.rglob("*")) if path.is_file()
    ]
    assert all((whole / file).read_bytes() == (streamed / file).read_bytes() for file in files)


def test_a_stock_format_with_other_names_is_saved_whole(tmp_path):
    class Renaming(Bert):
        def save(self, model, folder):
            save_file(
                {f"bert.{name}": t for name, t in model.state_dict().items()},
                str(folder / "model.safetensors"),
            )

    _, model, _ = made("bert")
    sizes = {"mlp.0": 5, "mlp.1": 5}
    view = StudentView(Renaming(), model, Bert().axes(model)[:2], sizes)
    assert not save_model(Renaming(), Bert().build(model, sizes), tmp_path, view.state())
    saved = load_file(str(tmp_path / "model.safetensors"))
    for name, tensor in view.state().items():
        # no stored buffers
        assert (
            torch.equal(saved[f"bert.{name}"], tensor)
            if f"bert.{name}" in saved
            else "_ids" in name
        )


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_mapped_model_gets_memory_of_its_own(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400))
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), str(path))
    mapped = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400))
    mapped.load_state_dict(load_file(str(path)), assign=True)
    with path.open("r+b") as file:  # what is mapped follows the file
        own_memory(mapped)
        file.seek(-1000, 2)
        file.write(bytes(1000))
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), mapped.state_dict().values(), strict=True)
    )
    own_memory(mapped)  # nothing to do
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), mapped.state_dict().values(), strict=True)
    )


def test_per_layer_widths_of_a_state_dict():
    for name in ("gpt2", "vit-token", "llama-mistral", "bert"):
        adapter, model, batch = made(name)
        student = adapter.build(model, {"mlp.0": 5, "mlp.1": 9}).eval()
        for parameter in student.parameters():
            nn.init.normal_(parameter, std=0.1)
        reloaded = adapter.load(
            Source("s", tensors=dict(student.state_dict()), config=_config_of(adapter, model))
        )
        assert torch.equal(logits(reloaded, batch), logits(student, batch))


def _config_of(adapter: Adapter, model: nn.Module) -> dict:
    """What a user would pass by --config, where the heads are not 64 wide."""
    return {"num_heads": 2} if isinstance(adapter, ViT) else model.config.to_dict()


def test_gpt2_state_dicts(tmp_path):
    model = gpt2(n_embd=64, n_head=1, n_inner=40)
    batch, tensors = inputs(model), model.state_dict()
    bare = {
        key.removeprefix("transformer."): value
        for key, value in tensors.items()
        if key != "lm_head.weight"
    }
    old = bare | {
        "h.0.attn.bias": torch.ones(1, 1, 16, 16),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    compiled = {f"module._orig_mod.{key}": value for key, value in tensors.items()}
    for given in (tensors, bare, old, strip_prefixes(compiled)):
        adapter = GPT2()
        loaded = adapter.load(Source("g.pt", tensors=given))
        assert torch.equal(logits(loaded, batch), logits(model, batch))
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
        assert "1 heads (assumed" in adapter.notes[0]
    untied = gpt2(n_embd=64, n_head=1, tie_word_embeddings=False)
    loaded = GPT2().load(Source("g.pt", tensors=untied.state_dict()))
    assert torch.equal(logits(loaded, batch), logits(untied, batch))


def test_gpt2_config_decides_over_the_shapes():
    model = gpt2(n_head=6)
    with pytest.raises(MattaError, match=r"24 wide.*--config"):
        GPT2().load(Source("g.pt", tensors=model.state_dict()))
    adapter = GPT2()
    loaded = adapter.load(Source("g.pt", tensors=model.state_dict(), config=model.config.to_dict()))
    assert (
        torch.equal(logits(loaded, inputs(model)), logits(model, inputs(model)))
        and not adapter.notes
    )


def test_gpt2_headless_folder_and_half_precision(tmp_path):
    model = gpt2()
    body = GPT2Model(model.config)
    body.load_state_dict(model.transformer.state_dict())
    body.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = GPT2().load(Source("body", folder=tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and not loaded.training
    assert torch.equal(
        loaded.transformer.wte.weight, model.transformer.wte.weight.bfloat16().float()
    )


def test_gpt2_refusals(tmp_path):
    model = gpt2(n_embd=64, n_head=1)
    tensors = dict(model.state_dict())
    tensors["transformer.h.1.mlp.c_fc.bias"] = torch.zeros(5)
    tensors["score.weight"] = tensors.pop("transformer.ln_f.weight")
    with pytest.raises(
        MattaError,
        match=r"g.pt.*ln_f.weight is missing.*score.weight is not.*c_fc.bias has shape \[5\]",
    ):
        GPT2().load(Source("g.pt", tensors=tensors))
    with pytest.raises(MattaError, match="cross-attention"):
        GPT2().load(Source("g", module=gpt2(add_cross_attention=True)))
    with pytest.raises(MattaError, match="not a GPT-2"):
        GPT2().load(Source("v", tensors=vit().state_dict()))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MattaError, match="holds no weights"):
        GPT2().load(Source("empty", folder=tmp_path))


LLAMAS = [name for name in MODELS if name.startswith("llama")]
GROUPED = [*LLAMAS, *(name for name in MODELS if name.startswith(("gemma", "phi3")))]


@pytest.mark.parametrize("name", LLAMAS)
def test_llama_axes(name):
    model = MODELS[name]()
    axes = Llama().axes(model)
    keys = model.config.num_key_value_heads * model.model.layers[0].self_attn.head_dim
    kinds = {
        "mlp": [37, 37],
        "heads": [keys, keys],
        "hidden": [model.config.hidden_size],
        "depth": [2],
    }
    uniform = len(set(getattr(model.config, "layer_types", None) or [""])) == 1
    assert nested_sizes.kinds(full_sizes(axes)) == {
        k: v for k, v in kinds.items() if uniform or k != "depth"
    }
    hidden = next(axis for axis in axes if axis.name == "hidden")
    assert hidden.step == (6 if model.config.model_type == "llama" else 1)  # LlamaConfig divides


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    ("inner", "keys", "hidden"), [(13, None, None), (None, 1, None), (29, None, 24), (1, 2, 12)]
)
def test_llama_student_is_the_librarys_own_smaller_model(name, inner, keys, hidden, tmp_path):
    """An independent reference: transformers' own model, with corners of the larger tensors."""
    adapter, model, _ = made(name)
    own = model.config
    shared = own.num_attention_heads // own.num_key_value_heads
    inner, hidden = inner or own.intermediate_size, hidden or own.hidden_size
    keys = min(keys or own.num_key_value_heads, own.num_key_value_heads)
    width = model.model.layers[0].self_attn.head_dim
    changes = {"intermediate_size": inner, "hidden_size": hidden, "head_dim": width}
    changes |= {"num_key_value_heads": keys, "num_attention_heads": keys * shared}
    reference = AutoModelForCausalLM.from_config(
        type(own).from_dict(own.to_dict() | changes)
    ).eval()
    large = model.state_dict()
    corners = {
        key: _corner(key, large[key], small, (own, reference.config), width)
        for key, small in reference.state_dict().items()
    }
    reference.load_state_dict(corners)

    axes = [axis for axis in adapter.axes(model) if not axis.layers]
    wanted = {"mlp": inner, "heads": keys * width, "hidden": hidden}
    student = materialize(
        adapter, model, axes, {axis.name: wanted[axis.name.split(".")[0]] for axis in axes}
    )
    adapter.save(student, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = inputs(model)
    for built in (loaded, student):
        assert all(torch.equal(built.state_dict()[key], value) for key, value in corners.items())
        # not bit for bit: some processors take another kernel where a mapped file's values lie
        # otherwise in memory
        torch.testing.assert_close(
            logits(built, batch), logits(reference, batch), rtol=1e-5, atol=1e-6
        )
    assert loaded.config.to_dict() == reference.config.to_dict() | _extra(loaded)


def _corner(key, large, small, configs, width):
    """What a smaller model keeps of a tensor; of a fused one, what each of its parts keeps."""
    parts = [[large.shape[0]], [small.shape[0]]]
    if "qkv" in key:
        heads = [(c.num_attention_heads, *[c.num_key_value_heads] * 2) for c in configs]
        parts = [[width * count for count in each] for each in heads]
    elif "gate_up" in key:
        parts = [[c.intermediate_size] * 2 for c in configs]
    kept = zip(large.split(parts[0]), parts[1], strict=True)
    rest = tuple(map(slice, small.shape[1:]))
    return torch.cat([part[(slice(count), *rest)] for part, count in kept])


def _extra(model: nn.Module) -> dict:
    """What saving and loading write into a configuration besides."""
    config = model.config.to_dict()
    return {
        key: config[key] for key in ("architectures", "_name_or_path", "dtype") if key in config
    }


def test_llama_heads_take_their_queries_along():
    model = llama()
    sizes = {"heads.0": 10, "heads.1": 20}
    student = materialize(Llama(), model, Llama().axes(model), sizes)
    first, second = (block.self_attn for block in student.model.layers)
    assert (len(first.q_proj.weight), len(first.k_proj.weight)) == (20, 10)
    assert torch.equal(first.q_proj.weight, model.model.layers[0].self_attn.q_proj.weight[:20])
    assert torch.equal(second.o_proj.weight, model.model.layers[1].self_attn.o_proj.weight[:, :40])


def test_llama_state_dicts():
    for name in LLAMAS:
        model = MODELS[name]()
        tensors = model.state_dict()
        bare = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
        bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
        if model.config.tie_word_embeddings:
            del bare["lm_head.weight"]
        for given in (tensors, bare, {key: tensor.double() for key, tensor in tensors.items()}):
            loaded = Llama().load(Source("m.pt", tensors=given, config=model.config.to_dict()))
            assert type(loaded) is type(model) and torch.equal(
                logits(loaded, inputs(model)), logits(model, inputs(model))
            )
            assert (
                loaded.lm_head.weight is loaded.model.embed_tokens.weight
            ) == model.config.tie_word_embeddings


def test_llama_old_buffers_and_half_precision_in_a_folder(tmp_path):
    from safetensors.torch import load_file, save_file

    llama().to(torch.bfloat16).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = Llama().load(Source("f", folder=tmp_path))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and not loaded.training
    assert torch.equal(loaded.lm_head.weight, tensors["lm_head.weight"].float())


@pytest.mark.parametrize("make", [lambda: gpt2(), lambda: llama(tie_word_embeddings=True)])
def test_a_head_unlike_the_embeddings_that_config_ties_it_to_is_kept_and_said(tmp_path, make):
    make().save_pretrained(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    torch.manual_seed(1)
    adapter = GPT2() if "transformer.wte.weight" in tensors else Llama()
    tensors["lm_head.weight"] = torch.randn_like(tensors[adapter.embedding])
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    loaded = adapter.load(Source("m", folder=tmp_path / "m"))
    assert torch.equal(logits(loaded, inputs(loaded)), logits(stock, inputs(stock)))
    kept = torch.equal(stock.lm_head.weight, tensors["lm_head.weight"])  # since transformers 5
    assert loaded.config.tie_word_embeddings is not kept
    assert (["'m': lm_head.weight is not" in note for note in adapter.notes] == [True]) is kept


def test_llama_refusals(tmp_path):
    model = llama(tie_word_embeddings=True)
    tensors, config = dict(model.state_dict()), model.config.to_dict()
    with pytest.raises(MattaError, match=r"'m.pt' is a state dict.*config.json.*--config"):
        Llama().load(Source("m.pt", tensors=tensors))
    with pytest.raises(
        MattaError, match=r"'m.pt' is not one of llama, mistral.*: --config says model_type 'gemma'"
    ):
        Llama().load(Source("m.pt", tensors=tensors, config={**config, "model_type": "gemma"}))
    with pytest.raises(MattaError, match=r"cannot build a llama from --config.*30"):
        Llama().load(Source("m.pt", tensors=tensors, config={**config, "num_attention_heads": 4}))
    with pytest.raises(MattaError, match=r"k_proj.weight has shape \[30, 30\], not \[60, 30\]"):
        Llama().load(Source("m.pt", tensors=tensors, config={**config, "num_key_value_heads": 6}))
    with pytest.raises(MattaError, match="head of its own"):
        Llama().load(
            Source("m.pt", tensors={**tensors, "lm_head.weight": torch.ones(97, 30)}, config=config)
        )
    with pytest.raises(MattaError, match="not one of the architecture's"):
        Llama().load(
            Source(
                "m.pt",
                tensors={**tensors, "model.layers.0.mlp.experts": torch.ones(1)},
                config=config,
            )
        )
    model.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(MattaError, match="quantized"):
        Llama().load(Source("m", module=model))
    adapter, other = Llama(), llama()
    student = adapter.build(other, {"heads.0": 20, "heads.1": 20})
    assert "30 wide cannot have 4 heads" in adapter.unsupported(student)
    student = adapter.build(other, {"heads.1": 10})
    assert re.search(
        r"one num_attention_heads for all blocks, which different ones \(6, 2\)",
        adapter.unsupported(student),
    )


def test_bert_with_fewer_heads():
    adapter, model, batch = made("bert")
    student = adapter.build(model, {"heads.0": 8, "heads.1": 16}).eval()
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert "channels in its heads (8, 16) as in its residual stream (24)" in adapter.unsupported(
        student
    ) and not adapter.unsupported(model)
    reloaded = adapter.load(
        Source("b", tensors=dict(student.state_dict()), config=student.config.to_dict())
    )
    assert torch.equal(logits(reloaded, batch), logits(student, batch))


def changed(folder: Path, **settings) -> None:
    """Another config.json than the weights are of."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_weights_of_other_shapes_than_the_configuration_says_are_named(tmp_path):
    llama().save_pretrained(tmp_path)
    changed(tmp_path, intermediate_size=36, vocab_size=98)
    told = r"lm_head.weight has shape \[97, 30\], not \[98, 30\]; .* and "
    with pytest.raises(MattaError, match=told):
        Llama().load(open_source(str(tmp_path)))
    config = AutoConfig.for_model("granite", vocab_size=31, hidden_size=16, num_hidden_layers=1)
    config.update({"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    changed(tmp_path / "other", intermediate_size=20)
    told = r"down_proj.weight has shape \[16, 24\], not \[16, 20\]"
    with pytest.raises(MattaError, match=told):
        load_model(str(tmp_path / "other"), "causal_lm")


def test_models_of_other_kinds_are_refused_by_what_they_are(tmp_path):
    config = {"model_type": "t5", "architectures": ["T5Model"], "is_encoder_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MattaError, match=r"is an encoder-decoder \(t5\): these have no task here"):
        plugins.detect(open_source(str(tmp_path)))
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MattaError, match=r"Its text part, a gemma3_text, can be opened from"):
        plugins.detect(open_source(str(tmp_path)))


def test_an_opt_as_wide_as_its_embeddings_keeps_what_projects_them(tmp_path):
    """transformers builds none where both are as wide, and would load it without a word."""
    adapter, model = OPT(), opt(word_embed_proj_dim=16)
    axes = adapter.axes(model)
    halved = {a.name: a.size * 2 // 3 for a in axes if a.name == "hidden" or "heads" in a.name}
    student = materialize(adapter, model, axes, full_sizes(axes) | halved)
    assert student.config.hidden_size == 16 == student.config.num_attention_heads * 8
    assert "as wide as its embeddings (16) has no projection" in adapter.unsupported(student)
    save_model(adapter, student, tmp_path)
    again = adapter.load(open_source(str(tmp_path)))
    assert logits(again, inputs(model)).equal(logits(student, inputs(model)))


def test_bert_state_dicts():
    model = bert(hidden_size=64, num_attention_heads=1)
    batch, tensors = inputs(model), model.state_dict()
    whole = BertForMaskedLM(model.config)
    whole.bert.load_state_dict(tensors, strict=False)
    bare = {key: value for key, value in tensors.items() if not key.startswith("pooler.")}
    for given in (
        tensors,
        bare,
        whole.state_dict(),
        tensors | {"embeddings.position_ids": torch.arange(16)[None]},
    ):
        adapter = Bert()
        source = Source("b.pt", tensors=given, drop_head=True)
        loaded = adapter.load(source)
        assert torch.equal(logits(loaded, batch), logits(model, batch))
        assert adapter.dropped == (["cls"] if any(key.startswith("cls.") for key in given) else [])
        assert (loaded.pooler is None) == ("pooler.dense.weight" not in given)
        assert any("1 heads (assumed" in note for note in adapter.notes)


def test_a_teacher_of_a_stock_library_is_whole(tmp_path):
    """transformers draws what a folder does not hold, and leaves the rest out silently."""
    from transformers import BloomConfig, BloomForCausalLM, BloomForSequenceClassification

    config = BloomConfig(
        vocab_size=20, hidden_size=8, n_layer=1, n_head=1, pad_token_id=3, tie_word_embeddings=False
    )
    BloomForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        MattaError, match=r"is no whole BloomForCausalLM: lm_head.weight is not in it"
    ):
        load_model(str(tmp_path / "classifier"), "causal_lm")
    whole = BloomForCausalLM(config)
    whole.score = nn.Linear(8, 2)
    whole.save_pretrained(tmp_path / "both")
    said = []
    load_model(str(tmp_path / "both"), "causal_lm", say=said.append)
    assert said == ["What is not of a BloomForCausalLM is left out: score.bias, score.weight."]


HEADS = {"cls": BertForMaskedLM, "qa_outputs": BertForQuestionAnswering}


@pytest.mark.parametrize("head", HEADS)
def test_bert_of_another_task_gives_its_encoder_if_asked(tmp_path, head):
    """A head is not left out silently, by a folder or by a state dict."""
    whole = HEADS[head](bert().config).eval()
    whole.save_pretrained(tmp_path)
    adapter = Bert()
    refused = rf"'b' is more than an encoder: it has a head \({head}\).*--drop-head"
    for source in Source("b", folder=tmp_path), Source("b", tensors=whole.state_dict()):
        with pytest.raises(MattaError, match=refused):
            adapter.load(source)
    loaded = adapter.load(Source("b", folder=tmp_path, drop_head=True))
    assert adapter.dropped == [head]
    assert loaded.pooler is None  # rather than one with random weights
    assert any(f"({head})" in note for note in adapter.notes) and any(
        "mean" in note for note in adapter.notes
    )
    assert torch.equal(logits(loaded, inputs(loaded)), logits(whole.bert, inputs(loaded)))


def sentence_transformers(folder: Path, modules: tuple[str, ...], pooling: dict) -> Path:
    """A folder as sentence-transformers writes it."""
    bert().save_pretrained(folder)
    places = ["", *(f"{i}_{name}" for i, name in enumerate(modules, 1))]
    names = ["Transformer", *modules]
    listed = [
        {"type": f"sentence_transformers.models.{name}", "path": p}
        for name, p in zip(names, places, strict=True)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for place in places[1:]:
        (folder / place).mkdir()
    if "Pooling" in modules:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean"}, None),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_bert_pooling_survives(pooling, mode, tmp_path):
    folder = sentence_transformers(tmp_path / "a", ("Pooling", "Normalize"), pooling)
    adapter = Bert()
    loaded = adapter.load(Source("s", folder=folder))
    assert getattr(loaded.config, "sentence_pooling", None) == mode and adapter.notes == []
    (tmp_path / "b").mkdir()
    adapter.save(adapter.build(loaded, {"mlp.0": 8, "mlp.1": 8}), tmp_path / "b")
    assert (
        getattr(Bert().load(Source("b", folder=tmp_path / "b")).config, "sentence_pooling", None)
        == mode
    )


def test_bert_refusals(tmp_path):
    dense = sentence_transformers(
        tmp_path / "dense", ("Pooling", "Dense"), {"pooling_mode": "mean"}
    )
    with pytest.raises(MattaError, match="ends in Dense"):
        Bert().load(Source("s", folder=dense))
    both = {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    with pytest.raises(MattaError, match=r"pools by max\+mean"):
        Bert().load(
            Source("s", folder=sentence_transformers(tmp_path / "both", ("Pooling",), both))
        )
    with pytest.raises(MattaError, match="decoder"):
        Bert().load(Source("d", module=bert(is_decoder=True)))
    with pytest.raises(MattaError, match=r"24 wide.*--config"):
        Bert().load(Source("b.pt", tensors=bert().state_dict()))
    with pytest.raises(MattaError, match="not a BERT"):
        Bert().load(Source("v", tensors=vit().state_dict()))
    tensors = {
        key: value
        for key, value in bert().state_dict().items()
        if "layer.1.output.dense" not in key
    }
    with pytest.raises(MattaError, match=r"layer.1.output.dense.bias is missing"):
        Bert().load(Source("b.pt", tensors=tensors, config=bert().config.to_dict()))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avg", "class_token": False, "fc_norm": False},
        {
            "reg_tokens": 2,
            "no_embed_class": True,
            "init_values": 0.1,
            "qk_norm": True,
            "pre_norm": True,
        },
        {"in_chans": 1, "img_size": 56, "patch_size": 14, "mlp_ratio": 1.37, "qkv_bias": False},
        {"name": "deit_tiny_distilled_patch16_224"},
    ],
)
def test_vit_state_dicts(changes):
    model = vit(**{**changes, "num_heads": 1})
    adapter = ViT()
    loaded = adapter.load(Source("v.pt", tensors=model.state_dict()))
    batch = inputs(loaded)
    assert batch["x"].shape[1:] == (changes.get("in_chans", 3), *[changes.get("img_size", 32)] * 2)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert any("1 attention heads (assumed" in note for note in adapter.notes)


def test_vit_config_decides_over_the_shapes(tmp_path):
    model = vit(img_size=(24, 56))
    with pytest.raises(MattaError, match=r"position embeddings.*--config"):
        ViT().load(Source("v.pt", tensors=model.state_dict()))
    adapter = ViT()
    saved = adapter.load(Source("m", module=model))
    adapter.save(saved, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    loaded = adapter.load(Source("v.pt", tensors=model.state_dict(), config=config))
    assert torch.equal(logits(loaded, inputs(saved)), logits(model, inputs(saved)))
    assert adapter.notes == []


def test_vit_refusals():
    with pytest.raises(MattaError, match="GluMlp"):
        swiglu = timm.create_model(
            "vit_giant_patch14_dinov2", img_size=28, depth=1, embed_dim=64, num_heads=1, mlp_ratio=4
        )
        ViT().load(Source("s", module=swiglu))
    with pytest.raises(MattaError, match="no classification head"):
        ViT().load(Source("h", module=vit(num_classes=0)))
    with pytest.raises(MattaError, match=r"vit_tiny_patch16_224.*hub cannot be reached"):
        ViT().load(Source("vit_tiny_patch16_224"))
    with pytest.raises(MattaError, match=r"head\.weight"):
        ViT().load(Source("h.pt", tensors=vit(num_classes=0).state_dict()))
    with pytest.raises(
        MattaError, match=r"not a vision transformer of timm.*no tensor blocks.0.attn.qkv.weight"
    ):
        ViT().load(Source("g.pt", tensors=gpt2().state_dict()))


SEQUENTIALS = {
    "relu": lambda: [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)],
    "batchnorm": lambda: [
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(8, 5),
        nn.ReLU(),
        nn.Linear(5, 1),
    ],
    "layernorm after": lambda: [
        nn.Linear(6, 8, bias=False),
        nn.ReLU(),
        nn.LayerNorm(8),
        nn.Linear(8, 1),
    ],
}


@pytest.mark.parametrize("name", SEQUENTIALS)
def test_ranker_from_sequential(name, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(*SEQUENTIALS[name]())
    net(torch.randn(9, 6))  # moves BatchNorm's statistics
    net.eval()
    x = torch.randn(5, 6)
    for source in (Source("m", tensors=net.state_dict()), Source("m", module=net)):
        adapter = MLPRanker()
        model = adapter.load(source)
        assert torch.equal(model(x), net(x).squeeze(1))
        assert bool(adapter.notes) == (source.module is None)
        adapter.save(model, tmp_path)
        assert MLPRanker().load(Source("m", folder=tmp_path)).layers() == model.layers()


def test_ranker_config_and_embeddings():
    model = ranker(FIELDS, 6, layer(8, "GELU"), layer(5, "GELU"))
    adapter = MLPRanker()
    loaded = adapter.load(
        Source("m.pt", tensors=model.state_dict(), config={"activation": "gelu", "dropout": 0.1})
    )
    assert torch.equal(logits(loaded, inputs(model)), logits(model, inputs(model)))
    assert loaded.fields == FIELDS and loaded.dense == 6 and adapter.notes == []
    assert [m.p for m in loaded.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"tensors": nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict()},
            "2 outputs",
        ),
        ({"tensors": nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict()}, "no Linear"),
        ({"tensors": {"encoder.weight": torch.zeros(2, 2)}}, "not an MLP ranker"),
        ({"module": nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())}, "end with a Linear"),
        ({"module": nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 1))}, "start with a Linear"),
        ({"module": nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1))}, "PReLU"),
        (
            {
                "tensors": nn.Sequential(nn.Linear(3, 1)).state_dict(),
                "config": {"activation": "Swosh"},
            },
            "Swosh",
        ),
        (
            {"tensors": nn.Sequential(nn.Linear(3, 1)).state_dict(), "config": {"n_layer": 2}},
            "n_layer",
        ),
    ],
)
def test_ranker_refusals(source, message):
    with pytest.raises(MattaError, match=message):
        MLPRanker().load(Source("r.pt", **source))


@pytest.mark.parametrize(
    "name", ["gpt2", "llama-llama", "llama-qwen3", "vit-token", "mlp_ranker-both"]
)
def test_detection(name, tmp_path):
    adapter, model, _ = made(name)
    adapter.save(model, tmp_path)
    for source in (
        Source("f", folder=tmp_path),
        Source("t", tensors=model.state_dict()),
        Source("m", module=model),
    ):
        assert plugins.detect(source).name == adapter.name
    empty = tmp_path / "empty"
    empty.mkdir()
    for foreign in (
        Source("e", folder=empty),
        Source("resnet18"),
        Source("c", tensors={"conv1.weight": torch.zeros(1)}),
    ):
        assert not adapter.matches(foreign)


def test_a_foreign_state_dict_is_refused_by_every_adapter():
    foreign = Source("m.pt", tensors={"words.weight": torch.zeros(3, 2)})
    for adapter in plugins.adapters().values():
        with pytest.raises(MattaError, match=r"m\.pt"):
            adapter.load(foreign)


def test_name_known_to_timm_is_detected():
    assert plugins.detect(open_source("vit_tiny_patch16_224")).name == "vit"


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class System(Trap):
    """Does so with a function that torch refuses by name, in other words."""

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_pickles_are_refused_and_never_run(tmp_path):
    file, touched = tmp_path / "m.pt", tmp_path / "touched"
    for code in (Trap(touched), System(touched)):
        for zipped in (True, False):
            torch.save({"state_dict": code}, file, _use_new_zipfile_serialization=zipped)
            with pytest.raises(
                MattaError,
                match=r"runs code that it names \((getattr|posix\.system)\).*--allow-pickle",
            ):
                open_source(str(file))
    gpt2().config.save_pretrained(tmp_path)
    torch.save(System(touched), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        MattaError, match=r"a pickle that holds code \(posix.system\), which is never run"
    ):
        GPT2().load(Source("m", folder=tmp_path))
    assert not touched.exists()
    net = nn.Sequential(nn.Linear(2, 1))
    torch.save(net, file)
    with pytest.raises(MattaError, match="--allow-pickle"):
        open_source(str(file))
    assert isinstance(open_source(str(file), allow_pickle=True).module, nn.Sequential)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_files(tmp_path, wrap, zipped):
    tensors = {"module._orig_mod.0.weight": torch.ones(1, 2)}
    torch.save(wrap(tensors), tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    opened = open_source(str(tmp_path / "m.pth")).tensors
    assert (
        opened is not None
        and list(opened) == ["0.weight"]
        and torch.equal(opened["0.weight"], torch.ones(1, 2))
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("m.pt", b"", "damaged"),
        ("m.pt", b"junk" * 100, "damaged"),
        ("m.safetensors", b"junk" * 100, "damaged"),
        ("m.txt", b"junk", "not a model file"),
    ],
)
def test_damaged_files(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(MattaError, match=message):
        open_source(str(tmp_path / file))


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(tmp_path, zipped):
    torch.save(gpt2().state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MattaError, match="damaged"):
        open_source(str(tmp_path / "m.pt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing.pt", "no file or folder 'nothing.pt'"),
        ("./nothing", "no file or folder"),
        ("local-dir:nothing", "no folder"),
        (
            "gpt2-large",
            "'gpt2-large' is neither a local folder nor file, and the hub could not be reached",
        ),
        ("two words", "nor can it be a hub id"),
    ],
)
def test_names_of_nothing(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MattaError, match=message):
        open_source(text)


def test_local_folder_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = gpt2()
    model.save_pretrained("gpt2-large")
    loaded, source = load_model("gpt2-large", "causal_lm")
    assert source.folder == Path("gpt2-large")
    assert torch.equal(logits(loaded, inputs(model)), logits(model, inputs(model)))


def test_teachers_that_no_adapter_knows(tmp_path):
    resnet = timm.create_model("test_resnet", num_classes=3).eval()
    timm.models.save_for_hf(resnet, str(tmp_path), safe_serialization=True)
    loaded, _ = load_model(f"local-dir:{tmp_path}", "image_classification")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(logits(loaded, {"x": x}), logits(resnet, {"x": x}))
    with pytest.raises(MattaError, match="ranking"):
        load_model(str(tmp_path), "ranking")


def test_output_folder_stands_for_its_ta(tmp_path):
    (tmp_path / "ta").mkdir()
    gpt2().save_pretrained(tmp_path / "ta")
    assert load_model(str(tmp_path), "causal_lm")[1].folder == tmp_path / "ta"


def test_companions(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir(), target.mkdir()
    names = [
        "config.json",
        "model.safetensors",
        "matta.json",
        "README.md",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
    ]
    for name in [
        *names,
        "tokenizer_config.json",
        "generation_config.json",
        "preprocessor_config.json",
    ]:
        (source / name).write_text("{}")
    copied = copy_companions(source, target)
    assert copied == sorted(path.name for path in target.iterdir())
    assert (
        not {"config.json", "model.safetensors", "matta.json", "README.md"} & set(copied)
        and len(copied) == 6
    )


def test_the_steps_of_sentence_transformers_go_along(tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    source, target = tmp_path / "a", tmp_path / "b"
    (source / "1_Pooling").mkdir(parents=True), (source / "onnx").mkdir(), target.mkdir()
    names = [
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
    ]
    for name in [*names, "onnx/config.json", "config.json"]:
        (source / name).write_text("{}")
    assert copy_companions(source, target) == sorted(names)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*.json")) == sorted(names)
    listed = [*names, "onnx/config.json", "config.json"]  # and from the hub as well
    taken = filter_repo_objects(listed, allow_patterns=["*.json"], ignore_patterns=[_OTHER_FOLDERS])
    assert set(taken) == {*names, "config.json"}
