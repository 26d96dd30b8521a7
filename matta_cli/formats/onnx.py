"""ONNX programs in fewer bits, by onnxruntime's own quantization; and how they are run."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli.data.split import Batch
from matta_cli.errors import MattaError, said
from matta_cli.formats.programs import call_names
from matta_cli.settings.quantize import INT4, INT8
from matta_cli.tasks.task import Task

# What has weights. Convolutions are left to int8-static: onnxruntime has no fast ones whose
# inputs are quantized as they come.
_PRODUCTS, _TABLES, _CONVOLUTIONS = ["MatMul", "Gemm"], ["Gather"], ["Conv"]
BLOCK = 32  # int4: weights that share a scale

Inputs = Mapping[str, np.ndarray]


def inputs_of(task: Task, model: nn.Module, batches: Sequence[Batch]) -> list[Inputs]:
    """Batches of one kind as a program of ``model`` takes them."""
    args, kwargs = call_names(task, model, batches[0])
    given = {**{name: name for name in args}, **kwargs}
    return [{name: batch[own].numpy() for name, own in given.items()} for batch in batches]


def quantize(kind: str, program: Path, to: Path, examples: Sequence[Inputs]) -> None:
    """Write a float program in fewer bits.

    examples: batches that int8-static reads the ranges of activations off. Raises ``MattaError``
    where onnxruntime cannot.
    """
    try:
        with _quiet(), tempfile.TemporaryDirectory() as temp:
            from onnxruntime.quantization.shape_inference import quant_pre_process

            # what can be computed before, such as a transposed weight, is one that quantizes
            folded = Path(temp) / "folded.onnx"
            quant_pre_process(program, folded, skip_symbolic_shape=True)
            _forget_shapes(folded)
            if kind == INT4:
                _int4(folded, to)
            elif kind == INT8:
                _dynamic(folded, to)
            else:
                _static(folded, to, examples)
    except Exception as error:  # it raises whatever it has not foreseen
        what = f"onnxruntime cannot quantize this program ({kind})"
        raise MattaError(f"{what}: {said(error)[:300]}") from error


def _forget_shapes(program: Path) -> None:
    """Leave out what a program says of the shapes within it, which are inferred anew.

    onnxruntime 1.23, the last one for Python 3.10, folds a transposed weight and leaves its shape.
    """
    import onnx

    model = onnx.load(program, load_external_data=False)
    model.graph.ClearField("value_info")
    onnx.save(model, program)


def _dynamic(program: Path, to: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kinds = [*_PRODUCTS, *_TABLES]
    signed = QuantType.QInt8
    quantize_dynamic(program, to, op_types_to_quantize=kinds, per_channel=True, weight_type=signed)


def _static(program: Path, to: Path, examples: Sequence[Inputs]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(examples)

        def get_next(self) -> Any:
            return next(self.left, None)

    quantize_static(
        program,
        to,
        Reader(),
        op_types_to_quantize=[*_PRODUCTS, *_TABLES, *_CONVOLUTIONS],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # products of two activations, such as attention's, stay as they are
        extra_options={"MatMulConstBOnly": True},
    )


def _int4(program: Path, to: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(program))
    model.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        model.model,  # of 4 bits, unless told otherwise, which onnxruntime 1.23 cannot be
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=4,
        op_types_to_quantize=("MatMul", "Gather"),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(to), False)


class Session(nn.Module):
    """An ONNX program, called as ``like`` is, the model that it was made of. It runs on the CPU.

    threads: of the CPU that it may use; 0: torch's own number.
    """

    def __init__(self, program: Path, like: nn.Module | None, threads: int) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # models are timed in turns: waiting threads must not take another's time
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(program), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # what lies there may be anything
            raise MattaError(f"onnxruntime cannot open {program}: {said(error)[:300]}") from error
        self.names = [one.name for one in self.session.get_inputs()]
        if like is not None and hasattr(like, "config"):
            self.config = like.config

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        given = {name: kwargs[name] for name in self.names if name in kwargs}
        free = (name for name in self.names if name not in given)
        given |= dict(zip(free, args, strict=False))
        device = next(iter(given.values())).device
        inputs = {name: tensor.cpu().numpy() for name, tensor in given.items()}
        return torch.from_numpy(self.session.run(None, inputs)[0]).to(device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime tells of each step, and of what might be better; matta says what came of it."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
