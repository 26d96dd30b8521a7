"""Files, folders and tensors of formats that matta does not open, known by sight: what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matta_cli.errors import MattaError
from matta_cli.files.reading import header, lenient, record, whole
from matta_cli.models.names import FILES

_SAVE = "save its state dict or, with save_pretrained, a folder"
_STOCK = "load it with transformers and write it again with save_pretrained"
_ANEW = "download it again, or save the model anew"
_QUANTIZED = "matta needs the weights that it was made from"
_LORA = "merge it first (peft: model.merge_and_unload(), then save_pretrained), and pass that"
_LORA = f"is an adapter such as LoRA, without the model that it changes: {_LORA}"

# how the name of a file ends -> what it is, and what to do
_FILES = {
    ".gguf": "is no GGUF file, whatever its name says: pass the file that it was meant to be",
    ".onnx": "is an ONNX graph, which holds no PyTorch module: pass the checkpoint that it was "
    "exported from",
    ".h5": f"holds weights of TensorFlow: {_STOCK} (from_tf=True, transformers 4)",
    ".msgpack": f"holds weights of Flax: {_STOCK} (from_flax=True, transformers 4)",
    ".keras": "is a Keras model: pass a PyTorch checkpoint of it",
    ".tflite": "is a TensorFlow Lite graph: pass the checkpoint that it was exported from",
    ".pb": "is a TensorFlow graph: pass a PyTorch checkpoint of it",
    ".index": f"is a TensorFlow checkpoint: {_STOCK} (from_tf=True, transformers 4)",
    ".ot": f"holds weights for Rust: {_STOCK}",
    ".npz": f"holds arrays of NumPy, as JAX models have them: {_SAVE}",
    ".pkl": f"is a pickle: {_SAVE}",
    ".pt2": "is a program of torch.export: pass the checkpoint that it was exported from",
    ".engine": "is a TensorRT engine: pass the checkpoint that it was made from",
    ".mlmodel": "is a Core ML model: pass the checkpoint that it was made from",
    ".mlpackage": "is a Core ML model: pass the checkpoint that it was made from",
    ".nemo": f"is an archive of NeMo: {_SAVE}",
    ".zip": "is an archive: unpack it, and pass the folder or file in it",
    ".gz": "is an archive: unpack it, and pass the folder or file in it",
    ".tar": "is an archive: unpack it, and pass the folder or file in it",
}
# what quantization leaves beside, or in place of, a weight
PACKED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_map|quant_state\..+|weight_scale(_inv)?"
    r"|weight_packed|weight_format|weight_zero_point|_packed_params.*)$"
)
# files of weights that transformers, timm and open_clip look for, and of others that hold none
_WEIGHTS = re.compile(
    r"((pytorch_|flax_)?model(-\d+-of-\d+)?|open_clip_\w+)\.(safetensors|bin)(\.index\.json)?$"
)
_PART = re.compile(r"-\d+-of-\d+\.\w+$")
_NO_WEIGHTS = re.compile(
    r"adapter|optim|scheduler|random_state|rng_state|training_args|scaler|sampler"
)
_NARROW = {
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    *(getattr(torch, n) for n in dir(torch) if "float8" in n),
}
_WHOLE = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"}  # of safetensors
_MERGE = re.compile(
    r"(^|\.)(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|hada_w1_a|lokr_w1\w*|ia3_l"
    r"|oft_r|boft_R|vera_lambda_\w|prompt_embeddings|prompt_encoder)\b"
)
# tensors of layouts that other libraries have -> which one, and what to do
_LAYOUTS = (
    (r"^layers\.0\.(attention\.wq|feed_forward\.w1)\.", "Meta's Llama", "convert_llama_weights"),
    (r"^(model\.)?(language_model|decoder)\..*(query_key_value|linear_qkv)\.", "Megatron", ""),
    (r"(^|\.)transformer\.h\.0\.attn\.(attn|qkv)\.", "LitGPT", "convert_from_litgpt"),
    (r"^gpt_neox\.layers\.0\.attention\.query_key_value\.", "a transformers GPT-NeoX", ""),
    (r"(^|\.)(vit|deit|beit)\.encoder\.layer\.0\.attention\.", "a transformers ViT", ""),
    (r"^(visual\.)?(transformer\.resblocks|conv1)\.", "CLIP", ""),
    (r"^(conv_proj|encoder\.layers\.encoder_layer_0)\b", "torchvision's ViT", ""),
    (r"(^|\.)roberta\.encoder\.layer\.0\.", "a transformers RoBERTa", ""),
    (r"^(layer1\.0\.conv1|conv1)\.weight$", "a ResNet", ""),
)


def refuse_file(path: Path, name: str) -> None:
    """Raise ``MattaError`` for a file of a format that is known, and not opened."""
    if said := _FILES.get(path.suffix.lower(), ""):
        raise MattaError(f"{name!r} {said}.")


def refuse_folder(folder: Path, name: str) -> None:
    """Raise ``MattaError`` for a folder that is no checkpoint, but known.

    A folder without any sign of a model is left to who asked for one.
    """
    there = {path.name for path in folder.iterdir() if path.is_file()}
    _refuse_old_layout(folder, name)
    if any(_WEIGHTS.match(n) for n in there):
        _refuse_parts(folder, there, name)
        for own in sorted(n for n in there if _WEIGHTS.match(n) and n.endswith(".safetensors")):
            whole(folder / own, _ANEW)
        return
    others = sorted(n for n in there if n.endswith(FILES) and not _NO_WEIGHTS.search(n))
    others += sorted(
        path.relative_to(folder).as_posix() for path in folder.glob("global_step*/mp_rank_00_*.pt")
    )
    if others and not (folder / "matta.json").is_file():
        beside = f" with --config {folder / 'config.json'}" if "config.json" in there else ""
        what = "holds no weights under a name that transformers or timm opens"
        raise MattaError(f"{name!r} {what}, but {others[0]}: pass {folder / others[0]}{beside}.")
    if inside := sorted(n for n in there if n.lower().endswith(".gguf")):
        which = f"pass the file, {folder / inside[0]}" + (" say" if inside[1:] else "")
        raise MattaError(f"{name!r} holds no weights but in GGUF: {which}.")
    if parts := sorted(folder.glob(".metadata")) + sorted(folder.glob("*/.metadata")):
        whose = parts[0].parent
        if any(whose.glob("*.distcp")):
            join = f"torch.distributed.checkpoint.format_utils.dcp_to_torch_save({str(whose)!r}, "
            join = f"make one file of it ({join}'model.pt')), and pass that with its config.json"
            raise MattaError(f"{name!r} is a sharded checkpoint of FSDP: {join}.")
    if "latest_checkpointed_iteration.txt" in there or any(folder.glob("iter_*/mp_rank_00*")):
        raise MattaError(f"{name!r} is a checkpoint of Megatron: convert it to transformers first.")
    if any(n.startswith("zero_") or "_zero_pp_rank_" in n for n in there) or (
        "zero_to_fp32.py" in there
    ):
        join = "run its zero_to_fp32.py, and pass what that writes"
        raise MattaError(f"{name!r} is a checkpoint of DeepSpeed ZeRO in shards: {join}.")
    for suffix, said in _FILES.items():
        if found := sorted(n for n in there if n.lower().endswith(suffix)):
            raise MattaError(f"{name!r} holds {found[0]}, but no weights of PyTorch: it {said}.")
    steps = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    steps.sort(key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])  # not 9 after 10
    inner = [p.name for p in steps if any(_WEIGHTS.match(own.name) for own in p.iterdir())]
    if inner:
        which = f"pass one of them, {folder / inner[-1]} say"
        raise MattaError(
            f"{name!r} holds no weights, but checkpoints ({', '.join(inner)}): {which}."
        )


def _refuse_old_layout(folder: Path, name: str) -> None:
    """Raise ``MattaError`` where sentence-transformers would open a model in a folder below."""
    steps = lenient(folder / "modules.json")
    first = record(steps[0] if isinstance(steps, list) and steps else None)
    path = str(first.get("path") or "")
    if path and (folder / path / "config.json").is_file():
        again = "open the whole with sentence-transformers and save it anew (model.save)"
        raise MattaError(f"{name!r} has its model in {path}, by its modules.json: {again}.")


def _refuse_parts(folder: Path, there: set[str], name: str) -> None:
    """Raise ``MattaError`` where some of the files that weights were parted into are not there."""
    parts = sorted(n for n in there if _PART.search(n))
    complete = [n for n in there if _WEIGHTS.match(n) and n not in parts]
    indexes = [n for n in complete if n.endswith(".index.json")]
    if parts and not complete:
        kind = "pytorch_model.bin" if parts[0].endswith(".bin") else "model.safetensors"
        index = f"{kind}.index.json, which says what is in which"
        raise MattaError(f"{name!r} holds {parts[0]}, but not {index}: put that there, too.")
    if len(indexes) < len(complete):
        return
    for index in indexes:
        named = record(record(lenient(folder / index)).get("weight_map")).values()
        lost = sorted({str(own) for own in named} - there)
        if lost and len(indexes) == 1:
            of = f"{len(lost):,} of the files that its {index} names, {lost[0]} first"
            raise MattaError(f"{name!r} lacks {of}: put them there.")


def headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the safetensors files of a folder that are opened say of their tensors, by name."""
    first, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    named = {str(own) for own in record(record(lenient(index)).get("weight_map")).values()}
    files = [first] if first.is_file() else sorted(folder / own for own in named)
    there = [file for file in files if file.is_file()]
    for file in there:  # an index may name any file
        whole(file, _ANEW)
    return {file: header(file)[0] for file in there}


def refuse_narrow(headers: Mapping[Path, Mapping[str, Any]], name: str) -> None:
    """Raise ``MattaError`` where weights are whole numbers or of 8 bits, and nothing says which
    numbers they stand for: transformers would take them as they are.
    """
    for entries in headers.values():
        for key, entry in entries.items():
            kind = entry["dtype"]
            if key.endswith("weight") and (kind in _WHOLE or kind.startswith("F8")):
                what = f"{name!r} is quantized ({key} is {kind}), and no quantization_config says"
                raise MattaError(f"{what} how: {_QUANTIZED}.")


def chosen_weights(folder: Path, name: str) -> str:
    """A note on which of several files of weights is opened; empty where there is one.

    transformers and timm choose alike: safetensors first, and one file before one in shards.
    """
    order = [f"model.safetensors{more}" for more in ("", ".index.json")]
    order += [f"pytorch_model.bin{more}" for more in ("", ".index.json")]
    there = [n for n in order if (folder / n).is_file()]
    others = _others(folder) if there else []
    has = f"its weights in {len(there)} forms ({', '.join(there)})" if there[1:] else ""
    more = f"other files of weights ({', '.join(others[:4])})" if others else ""
    if not (has or more):
        return ""
    both = " and ".join(filter(None, (has, more)))
    return f"{name} has {both}: {there[0]} is opened, as transformers and timm do."


def _others(folder: Path) -> list[str]:
    """Files of weights that libraries do not look for, such as an average of the model's."""
    known = ("matta.json", "modules.json")  # what wrote these writes no others of a model
    if any((folder / own).is_file() for own in known):
        return []
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(FILES))
    return [n for n in names if not (_WEIGHTS.match(n) or _NO_WEIGHTS.search(n))]


def refuse_tensors(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise ``MattaError`` for a state dict that holds no weights that could be trained."""
    if any(_MERGE.search(key) for key in tensors):
        raise MattaError(f"{name!r} {_LORA}.")
    narrow = [k for k, t in tensors.items() if k.endswith("weight") and t.dtype in _NARROW]
    packed = [k for k, t in tensors.items() if PACKED.search(k) or t.is_quantized]
    if packed or narrow:
        first = (packed or narrow)[0]
        raise MattaError(f"{name!r} is quantized ({first}): {_QUANTIZED}.")
    empty = [k for k, t in tensors.items() if t.dim() and not t.numel() and k.endswith("weight")]
    if empty:
        join = "DeepSpeed ZeRO keeps them in shards: run the zero_to_fp32.py beside it"
        raise MattaError(f"{name!r} holds empty tensors ({empty[0]} first). {join}.")


def layout(names: Iterable[str]) -> str:
    """What is said of tensors by these names that no adapter knows: whose they are, what to do."""
    names = list(names)
    for pattern, kind, script in _LAYOUTS:
        if any(re.search(pattern, name) for name in names):
            how = f"convert it with the script {script}" if script else _STOCK
            if kind in ("CLIP", "torchvision's ViT", "a ResNet"):
                return (
                    f"these are tensors of {kind}: name a function that builds it "
                    "(pkg.mod:build), with --weights, --example and --adapter auto"
                )
            if kind.startswith("a transformers"):
                how = "pass its folder (--adapter auto), or a function that builds it and --weights"
            return f"these are tensors of {kind}: {how}"
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    any_model = (
        "a function that builds the model (pkg.mod:build) with --weights, and --adapter auto"
    )
    return (
        f"its tensors are {shown}: pass its folder, its config.json with --config, or {any_model}"
    )
