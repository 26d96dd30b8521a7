"""In which numbers a model's weights are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from matta_cli.adapter import Source
from matta_cli.files import reading
from matta_cli.models import foreign

# Students are saved in one of these; what is stored in any other is so in float32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SAFETENSORS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(source: Source) -> str:
    """The type of most of a source's weights, as a name in ``DTYPES``.

    matta computes in float32 whatever it is.
    """
    if source.module is not None:
        tensors: Iterable[Any] = source.module.parameters()
    elif source.tensors is not None:
        tensors = source.tensors.values()
    elif source.folder is not None:
        return _of_folder(source.folder)
    else:
        tensors = ()
    counted: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            counted[_NAMES.get(tensor.dtype, "float32")] += tensor.numel()
    return _most(counted)


def _of_folder(folder: Path) -> str:
    """That of the safetensors files of a folder that are opened; without any, of config.json."""
    counted: Counter[str] = Counter()
    for entries in foreign.headers(folder).values():
        for entry in entries.values():
            if entry["dtype"] in ("F64", *_SAFETENSORS):
                start, end = entry["data_offsets"]
                each = 4 if entry["dtype"] in ("F32", "F64") else 2
                counted[_SAFETENSORS.get(entry["dtype"], "float32")] += (end - start) // each
    if counted:
        return _most(counted)
    config = reading.record(reading.lenient(folder / "config.json"))
    said = config.get("dtype") or config.get("torch_dtype")
    return said if said in DTYPES else "float32"


def _most(counted: Counter[str]) -> str:
    return counted.most_common(1)[0][0] if counted else "float32"
