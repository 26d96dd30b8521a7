"""What runs a Student: the lines that a model card ends with, and which of them were run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matta_cli.models.tokenizer import has_tokenizer
from matta_cli.report.schema import ModelEntry

LOADED = "loaded so when it was exported, and compared with the nested view"
AS_IS = "loaded so when it was exported, and measured in the report"
TRIED = "tried by the tests of matta, on small models of this kind"
NOT_RUN = "not run here"

# what a pipeline of transformers is called with, by the name that the hub has for the task
_GIVEN = {
    "text-generation": '"Once upon a time", max_new_tokens=20',
    "text-classification": '"A sentence to classify."',
    "token-classification": '"A sentence to label."',
    "image-classification": 'Image.new("RGB", (224, 224))',
}
_PIPELINE = """\
{imports}from transformers import pipeline

run = pipeline({task!r}, model=folder)
print(run({given}))"""
_TIMM = """\
import timm
import torch

model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
images = torch.zeros(1, *model.pretrained_cfg["input_size"])  # yours, as timm.data prepares them
print(model(images).softmax(-1))"""
_SENTENCES = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder)
print(model.encode(["A sentence.", "Another one."]).shape)"""
_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession(folder + "/student.onnx")
print([(given.name, given.shape, given.type) for given in session.get_inputs()])"""
_VLLM = "vllm serve {folder}"
_GGUF = "python llama.cpp/convert_hf_to_gguf.py {folder} --outfile student.gguf"


@dataclass(frozen=True)
class Runtime:
    """Lines that run a Student. In Python its folder is called ``folder``; tried: who ran them."""

    name: str
    code: str
    tried: str
    language: str = "python"


def runtimes(entry: ModelEntry, task: str, here: Path) -> Iterator[Runtime]:
    """What runs an exported Student, whose files lie ``here`` now. task: what the hub calls it."""
    there = place(entry)
    library = entry.loader.partition(".")[0]
    if entry.quantized:
        yield Runtime(library, _ONNX if "onnx" in library else _loading(entry.loader, there), AS_IS)
        return
    if library == "sentence_transformers":
        yield Runtime("sentence-transformers", _SENTENCES, TRIED)
    else:
        yield Runtime(library, _loading(entry.loader, there), LOADED)
    for name, program in entry.programs.items():
        code = _ONNX if name == "onnx" else _loading(program.loader, there)
        yield Runtime(f"{program.loader.partition('.')[0]} ({name})", code, LOADED)
    if not entry.stock:
        return
    if library == "timm":
        yield Runtime("timm, with a prediction", _TIMM, TRIED)
    images = task == "image-classification"
    reads = (here / "preprocessor_config.json").is_file() if images else has_tokenizer(here)
    if library == "transformers" and task in _GIVEN and reads:
        imports = "from PIL import Image\n" if images else ""
        code = _PIPELINE.format(task=task, given=_GIVEN[task], imports=imports)
        yield Runtime("transformers, as a pipeline", code, TRIED)
    if task == "text-generation":
        folder = shlex.quote(there)
        yield Runtime("vLLM", _VLLM.format(folder=folder), NOT_RUN, "sh")
        yield Runtime("llama.cpp", _GGUF.format(folder=folder), NOT_RUN, "sh")


def uneven(entry: ModelEntry, task: str) -> str:
    """What loads a Student whose sizes no stock library has; empty where one loads it."""
    if entry.stock or not entry.loader.startswith("matta_cli."):
        return ""
    none = "No other library has its sizes"
    if task == "text-generation":
        none += " (neither transformers nor vLLM nor llama.cpp)"
    beside = " and ".join(entry.programs)
    return f"{none}: matta loads it{f', or its programs run ({beside})' if beside else ''}."


def place(entry: ModelEntry) -> str:
    """Where a Student lies, as its loader says it."""
    own = re.escape(entry.folder or "")
    found = re.search(rf"""(['"])((?:(?!\1)[^\\]|\\.)*{own})\1""", entry.loader)
    return str(ast.literal_eval(found[0])) if found else entry.folder or ""


def _loading(loader: str, there: str) -> str:
    return f"import {loader.partition('.')[0]}\n\nmodel = {loader.replace(repr(there), 'folder')}"
