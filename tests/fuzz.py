"""Files that are wrong in every way, and a command that reads them in a process of its own."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import resource
import select
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from matta_cli.files import atomic
from matta_cli.main import app

SECONDS, BYTES, LONGEST = 60, 12 << 30, 5_000
_DEEP = "[" * 100_000
_WRONG: list[Any] = [None, True, -1, 0, 1, 2.5, 1e308, 10**18, "", "x", "\x1b[31m<b>", [], {}]
_WRONG += [float("nan"), float("inf"), -(10**30), [[]], [None], [1, "a"], {"a": 1}, {"": None}]
_WORDED = (".csv", ".tsv", ".svm", ".query", ".group", ".txt", ".md", ".jinja")
_WORDED += (".conll", ".conllu")
_CELLS = ["", "nan", "inf", "-1", "1e400", "9" * 5_000, "x", '"', "a,b", "\x1b[31m", "\0", "1:1"]
_CELLS += ["99999999999:1", "qid:x", "qid:-1", "0:1", "\ud7ff", "/dev/zero", "../../x", "\r", "#"]
_CELLS += ["99999999:1", "true", "1979-05-27", "=1", "é", "\u202e", "0" * 64, str(2**63), "1_000"]
_TEXTS = ["", "null", "[]", "{}", "0", '"x"', _DEEP, '{"a":' * 50_000, "9" * 5_000, "\0", "NaN"]


def said(folder: Path, line: str) -> tuple[int, str]:
    """What a command typed in a folder exits with, and says; -1 where it hangs or dies."""
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(out)
            resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
            os.chdir(folder)
            done = CliRunner().invoke(app, line.split())
            error = f"\n{done.exception!r}" if not isinstance(done.exception, SystemExit) else ""
            text = f"{done.stderr}{error if done.exception else ''}"
            raw = text.encode("utf-8", "backslashreplace")[-60_000:]
            os.write(into, f"{done.exit_code}\n".encode() + raw)
        finally:
            os._exit(0)
    os.close(into)
    ready, _, _ = select.select([out], [], [], SECONDS)
    text = os.read(out, 1 << 16).decode("utf-8", "replace") if ready else ""
    os.close(out)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if not text:
        return -1, "hangs" if not ready else "dies"
    code, _, rest = text.partition("\n")
    return int(code), rest


def wrong(code: int, text: str) -> str:
    """Why that is no way to end; empty where it is one."""
    if code == 0:
        return ""
    lines = text.strip().splitlines() or [""]
    if code != 1 or not lines[-1].startswith("Error: ") or "Traceback" in text:
        return f"ends with {code}: {text[-500:]}"
    if "mistake of matta" in lines[-1]:
        return lines[-1]
    if len(lines[-1]) > LONGEST:
        return f"says {len(lines[-1]):,} characters: {lines[-1][:500]}"
    return f"an escape reaches the terminal: {text!r}" if "\x1b" in text else ""


def kept(text: str) -> str:
    """Where a mistake of matta happened, of the file that it names."""
    found = re.search(r"with the file (\S+),", text)
    lines = Path(found[1]).read_text().splitlines() if found else []
    places = [line.strip() for line in lines if line.strip().startswith('File "')]
    return " <- ".join(re.sub(r'File ".*/([\w.]+)", line', r"\1", p) for p in places[:-4:-1])


def spoil(random: Random, path: Path) -> str:
    """Make a file wrong in some way; returns which."""
    if random.random() < 0.12:
        return _replaced(random, path)
    if path.suffix in (".json", ".jsonl") and random.random() < 0.8:
        return _json(random, path)
    if path.suffix == ".toml" and random.random() < 0.8:
        return _toml(random, path)
    if path.suffix == ".safetensors" and random.random() < 0.8:
        return (_header if random.random() < 0.5 else _tensors)(random, path)
    if path.suffix in (".pt", ".bin") and random.random() < 0.7:
        return _pickled(random, path)
    if path.suffix == ".parquet" and random.random() < 0.7:
        return _columns(random, path)
    if path.suffix == ".npz" and random.random() < 0.7:
        return _arrays(random, path)
    if path.suffix in (".gz", ".bz2") and random.random() < 0.7:
        return _packed(random, path)
    words = path.suffix in _WORDED or path.name == "SHA256SUMS"
    return (_words if words and random.random() < 0.6 else _bytes)(random, path)


def reseal(path: Path) -> None:
    """Give a sealed folder above a file the sums of what lies there now."""
    card = path.with_name("teacher.json")
    if path.suffix == ".safetensors" and path.is_file() and card.is_file():
        said = json.loads(card.read_text())
        shards = sorted(path.parent.glob("*.safetensors"))
        said["digests"] = [atomic.file_digest(shard) for shard in shards if shard.is_file()]
        card.write_text(json.dumps(said))
    for folder in path.parents:
        if (folder / "SHA256SUMS").is_file() and path.name != "SHA256SUMS":
            (folder / "SHA256SUMS").unlink()
            atomic.seal(folder)
            return


def _replaced(random: Random, path: Path) -> str:
    how = random.choice(["gone", "folder", "pipe", "endless", "dangling", "itself", "swapped"])
    others = [other for other in path.parent.rglob("*") if other.is_file() and other != path]
    if how == "swapped" and others:
        shutil.copyfile(random.choice(others), path)
        return how
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "endless":
        path.symlink_to("/dev/zero")
    elif how in ("dangling", "itself"):
        path.symlink_to(path.name if how == "itself" else "nowhere")
    return how


def _bytes(random: Random, path: Path) -> str:
    content = path.read_bytes()
    # what stands first tells what follows
    at = random.randrange(min(len(content), random.choice([100, 2_000, len(content)])) or 1)
    how = random.choice(["cut", "flipped", "empty", "noise", "not UTF-8", "text", "other"])
    if how == "cut":
        content = content[:at]
    elif how == "flipped":
        flipped = bytearray(content or b"0")
        flipped[at] ^= 1 << random.randrange(8)
        content = bytes(flipped)
    elif how == "not UTF-8":
        content = content[:at] + b"\xff\xfe\x80" + content[at:]
    elif how == "text":
        content = random.choice(_TEXTS).encode()
    else:
        content = bytes(random.randrange(256) for _ in range(100 if how == "noise" else 0))
    path.write_bytes(content)
    return f"{how} at {at}"


def _words(random: Random, path: Path) -> str:
    """A cell of a table, or a word of a text, that is another."""
    parts = re.split(r"([,\t\n ])", path.read_bytes().decode("utf-8", "replace"))
    at = random.choice([n for n, part in enumerate(parts) if part not in ("", "\n")] or [0])
    parts[at] = random.choice(_CELLS)
    path.write_text("".join(parts))
    return f"{parts[at][:40]!r} is word {at}"


def _packed(random: Random, path: Path) -> str:
    inner, packed = path.with_suffix(".inner"), gzip if path.suffix == ".gz" else bz2
    inner.write_bytes(packed.decompress(path.read_bytes()))
    words = Path(path.stem).suffix in _WORDED
    how = (_words if words and random.random() < 0.5 else _bytes)(random, inner)
    path.write_bytes(packed.compress(inner.read_bytes()))
    inner.unlink()
    return f"inside {how}"


def _arrays(random: Random, path: Path) -> str:
    arrays = dict(np.load(path))
    name = random.choice(sorted(arrays))
    odd = {
        "float": lambda a: a / 255,
        "NaN": lambda a: np.full(a.shape, np.nan),
        "text": lambda a: a.astype(str),
        "negative": lambda a: -a.astype(int) - 1,
        "large": lambda a: a.astype("uint64") + 2**63,
        "complex": lambda a: a.astype(complex),
        "dates": lambda a: a.astype("datetime64[s]"),
        "bools": lambda a: a.astype(bool),
        "scalar": lambda a: a.flat[0],
        "flat": lambda a: a.ravel(),
        "deeper": lambda a: a[..., None],
        "no rows": lambda a: a[:0],
        "one row": lambda a: a[:1],
        "no columns": lambda a: a[..., :0],
        "objects": lambda a: a.astype(object),
        "big-endian": lambda a: a.astype(">i4"),
        "records": lambda a: np.zeros(len(a), [("a", "i4")]),
        "half": lambda a: a.astype("float16"),
    }
    how = random.choice([*odd, "gone"])
    if how == "gone":
        del arrays[name]
    else:
        arrays[name] = odd[how](arrays[name])
    np.savez(path, **arrays)
    return f"{name} {how}"


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything inside JSON, as what holds it and where."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _nodes(value[key])


def _change(random: Random, value: Any) -> str:
    places = list(_nodes(value)) if isinstance(value, (dict, list)) else []
    if not places:
        return "nothing"
    # those on top matter most, and are few
    holder, key = random.choice(places[:12] if random.random() < 0.3 else places)
    if random.random() < 0.3:
        del holder[key]
        return f"without {key!r}"
    holder[key] = random.choice(_WRONG)
    return f"{key!r} is {holder[key]!r}"


def _json(random: Random, path: Path) -> str:
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    at = random.randrange(len(lines) or 1)
    try:
        value = json.loads(lines[at])
    except (ValueError, IndexError):
        return _bytes(random, path)
    how = _change(random, value)
    lines[at] = json.dumps(value)
    if random.random() < 0.1:
        lines[at], how = re.sub(r"\d+", "9" * 5_000, lines[at], count=1), "5,000 digits"
    elif random.random() < 0.1:
        lines[at], how = random.choice(_TEXTS), "another text"
    path.write_text("\n".join(lines) + "\n")
    return how


def _toml(random: Random, path: Path) -> str:
    lines = path.read_text().splitlines()
    named = [n for n, line in enumerate(lines) if "=" in line or line.startswith("[")]
    at = random.choice(named)
    name = lines[at].lstrip("# ").partition("=")[0].strip()
    texts = ["1", "-1", '""', '"x"', "[]", "{}", "true", "nan", "inf", "9" * 5_000, "[" * 50_000]
    texts += ["[1, 'a']", "1979-05-27", '"\\u001b[31m"', "1e400", "0x7fffffffffffffff", "{a = 1}"]
    text = random.choice(texts)
    lines[at] = f"{name} = {text}" if "=" in lines[at] else f"[{random.choice(['x', 'a.b', ''])}]"
    path.write_text("\n".join(lines) + "\n")
    return f"{lines[at][:60]}"


def _header(random: Random, path: Path) -> str:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    value = json.loads(content[8 : 8 + length])
    how = _change(random, value)
    header = json.dumps(value).encode()
    size = random.choice([len(header)] * 8 + [0, 2**63, 10**9])
    path.write_bytes(struct.pack("<Q", size) + header + content[8 + length :])
    return f"header: {how}, {size}"


def _tensors(random: Random, path: Path) -> str:
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError):
        return _bytes(random, path)
    if not tensors:
        return _bytes(random, path)
    name = random.choice(sorted(tensors))
    tensors[name], how = _odd(random, tensors[name])
    if how == "gone":
        del tensors[name]
    try:
        save_file(tensors, str(path))
    except (ValueError, RuntimeError, SafetensorError):
        return _bytes(random, path)
    return f"{name} {how}"


def _odd(random: Random, tensor: torch.Tensor) -> tuple[torch.Tensor, str]:
    how = random.choice(["gone", "NaN", "float64", "int64", "bool", "scalar", "empty", "one more"])
    made = {
        "NaN": lambda: torch.full(tensor.shape, torch.nan),
        "float64": tensor.double,
        "int64": tensor.long,
        "bool": tensor.bool,
        "scalar": lambda: torch.tensor(1.0),
        "empty": lambda: tensor.reshape(-1)[:0].clone(),
        "one more": lambda: torch.zeros(*tensor.shape, 1),
    }
    return made.get(how, lambda: tensor)(), how


def _pickled(random: Random, path: Path) -> str:
    state: Any = torch.load(path, weights_only=True)
    whole, state = state, state.get("state_dict", state)
    name = random.choice(sorted(state))
    how = random.choice(["odd", "number", "sparse", "quantised", "itself", "deep", "list", "none"])
    if how == "odd":
        state[name], how = _odd(random, state[name])
    elif how == "number":
        state[7] = state.pop(name)
    elif how == "sparse":
        state[name] = state[name].to_sparse()
    elif how == "quantised":
        state[name] = torch.quantize_per_tensor(state[name].float(), 0.1, 0, torch.qint8)
    elif how == "itself":
        state = {"model": state}
        state["state_dict"] = state
    elif how == "deep":
        for _ in range(3_000):
            state = {"state_dict": state}
    elif how == "list":
        state = random.choice([[state], [], 3, "x", (1,), {}, {"model": 3}, torch.ones(3)])
    else:
        state[name] = None
    if "state_dict" in whole and random.random() < 0.8:
        state = {**whole, "state_dict": state}
    try:
        torch.save(state, path)
    except RecursionError:
        return _bytes(random, path)
    return f"{name} {how}"


def _columns(random: Random, path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    at, rows = random.randrange(table.num_columns), table.num_rows
    kinds = {
        "decimal": pa.array([1] * rows).cast(pa.decimal128(38, 2)),
        "text": pa.array(["1"] * rows),
        "nothing": pa.nulls(rows),
        "lists": pa.array([[1.0, None]] * rows),
        "bytes": pa.array([b"\xff"] * rows),
        "dates": pa.array([1] * rows).cast(pa.timestamp("s")),
        "maps": pa.array([{"a": 1}] * rows),
        "bools": pa.array([True] * rows),
        "words": pa.array(["a"] * rows).dictionary_encode(),
        "large": pa.array([1e308] * rows),
        "whole": pa.array([2**63] * rows, pa.uint64()),
        "small": pa.array([-(2**40)] * rows),
    }
    how = random.choice([*kinds, "gone", "no rows", "twice"])
    name = table.column_names[at]
    if how == "gone":
        table = table.remove_column(at)
    elif how == "no rows":
        table = table.slice(0, 0)
    elif how == "twice":
        table = table.append_column(name, table.column(at))
    else:
        table = table.set_column(at, name, kinds[how])
    pq.write_table(table, path)
    return f"{name} {how}"


def attempt(random: Random, project: Path, copy: Path, readers: dict[str, list[str]]) -> str:
    """Spoil a file of a copy of a project, and type what reads it; what is wrong with the end."""
    pattern = random.choice(sorted(readers))
    shutil.copytree(project, copy, symlinks=True)
    try:
        files = sorted(path for path in copy.glob(pattern) if path.is_file())
        path = random.choice(files)
        how = spoil(random, path)
        if random.random() < 0.7:
            reseal(path)
        line = random.choice(readers[pattern])
        code, text = said(copy, line)
        why = wrong(code, text)
        named = f"{path.relative_to(copy)}: {how}; {line}"
        return f"{named}\n  {why}\n  {kept(why)}" if why else ""
    finally:
        shutil.rmtree(copy, ignore_errors=True)
