"""Where a run computes, and in which numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from matta_cli.errors import MattaError

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises ``MattaError`` for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        instead = "pass --device cpu or leave it out"
        raise MattaError(f"Device {name!r} is not available here; {instead}.") from None
    return device


def resolved(name: str, device: torch.device) -> str:
    """The precision that ``auto`` stands for: fp32; on CUDA bf16, fp16 on a card without bf16."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def half(name: str, device: torch.device) -> torch.dtype | None:
    """The type of half the bits that a precision computes products in; None where it has none."""
    return _HALF.get(resolved(name, device))


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Autocast to bf16 or fp16 within, for forward passes; weights stay float32.

    Products of float32 are those of ``products``.
    """
    dtype = half(name, device)
    cast = torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)
    with products(name, device), cast:
        yield


@contextmanager
def products(name: str, device: torch.device) -> Iterator[None]:
    """Compute products of float32 within, forward and backward, as the precision has it.

    That is in TensorFloat-32 for tf32. For fp32 it is in float32, convolutions too, which torch by
    itself computes in TensorFloat-32. Who has set this in torch's newer way (``fp32_precision``)
    keeps what was set: torch lets nobody read it in the older one.
    """
    name, cudnn = resolved(name, device), torch.backends.cudnn
    try:
        before, convolutions = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        before = ""
    if not before:
        yield
        return
    torch.set_float32_matmul_precision("high" if name == "tf32" else before)
    cudnn.allow_tf32 = name == "tf32" if name in ("fp32", "tf32") else convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32 = convolutions


def scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which fp16 needs and nothing else does."""
    return torch.amp.GradScaler(device.type, enabled=resolved(name, device) == "fp16")


# Dense peak of the tensor cores in bf16 or fp16, FLOP/s, from the vendor's data sheets.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The most FLOP/s that a CUDA card can do in this precision; None where that is not known."""
    if device.type != "cuda" or resolved(precision, device) not in _HALF:
        return None
    card = torch.cuda.get_device_name(device)
    names = sorted(_PEAKS, key=len, reverse=True)  # an "A10G" is no "A10"
    return next((_PEAKS[name] for name in names if name in card), None)
