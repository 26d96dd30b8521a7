"""``matta doctor``: what is installed here, and works: what a bug report needs."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any

from matta_cli import console, trust
from matta_cli.commands import options
from matta_cli.errors import command, install, said
from matta_cli.version import __version__

SECONDS = 3.0  # that the hub may take to answer


def doctor(json: options.Json = False) -> None:
    """Say what a bug report needs: versions, devices, extras, caches, whether the hub answers."""
    found: dict[str, Any] = {
        "matta": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "devices": _devices(),
        "extras": _extras(),
        "cache": _caches(),
        "hub": _hub(),
    }
    if json:
        console.data(found)
    else:
        console.table(["what", "which"], _rows(found), left=True, prose=["which"])
    missing = [name for name, extra in found["extras"].items() if extra["missing"]]
    if missing:
        console.say(f"An extra is installed by its name: {install(missing[0])}.")
    console.hint(command("demo"))


def _rows(found: dict[str, Any]) -> list[list[str]]:
    rows = [[name, found[name]] for name in ("matta", "python", "platform")]
    rows += [[name, version or "not installed"] for name, version in found["packages"].items()]
    rows += [["device", device] for device in found["devices"]]
    for name, extra in found["extras"].items():
        lacks = ", ".join(extra["missing"])
        rows.append([f"extra {name}", f"not installed: {lacks}" if lacks else "installed"])
    for name, cache in found["cache"].items():
        free = f"; {cache['free_bytes'] / 1e9:.0f} GB free" if cache["free_bytes"] else ""
        rows.append([f"cache of {name}", f"{cache['folder']}{free}"])
    return [*rows, ["hub", f"{found['hub']['address']}: {found['hub']['said']}"]]


def _requirements() -> list[tuple[str, str]]:
    """(package, extra) of all that matta asks for; the extra of what it always needs is empty."""
    try:
        lines = metadata.requires("matta") or []
    except metadata.PackageNotFoundError:  # run from a source tree
        return []
    found = []
    for line in lines:
        name, _, marker = line.partition(";")
        package = re.match(r"[A-Za-z0-9._-]+", name)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
        if package and package[0] != "matta" and (extra or not marker):
            found.append((package[0], extra[1] if extra else ""))
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> dict[str, str | None]:
    """The versions of what matta needs, and of what that computes with."""
    needed = [package for package, extra in _requirements() if not extra]
    every = dict.fromkeys(["torch", *needed, "numpy", "tokenizers", "huggingface_hub"])
    return {package: _version(package) for package in every}


def _extras() -> dict[str, dict[str, Any]]:
    """Each extra, and what is missing of it."""
    found: dict[str, dict[str, Any]] = {}
    for package, extra in _requirements():
        if extra not in ("", "dev", "docs"):  # those are for who works on matta itself
            missing = found.setdefault(extra, {"missing": []})["missing"]
            missing += [] if _version(package) else [package]
    return found


def _devices() -> list[str]:
    """What there is to compute on, in words."""
    try:
        import torch
    except Exception as error:  # a broken installation is what this is asked about
        return [f"torch does not import: {said(error)}"]
    found = [f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"]
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return [*found, "no CUDA device" + ("" if built else " (this torch is for CPUs only)")]
    for index in range(torch.cuda.device_count()):
        own = torch.cuda.get_device_properties(index)
        memory = f"{own.total_memory / 2**30:.0f} GiB"
        found.append(f"cuda:{index}: {own.name}, {memory}, CUDA {torch.version.cuda}")
    return found


def _caches() -> dict[str, dict[str, Any]]:
    """Where models and data of the hub are kept, and what matta keeps; and what room is left."""
    found = {}
    for name, folder in (("the hub", _hub_cache()), ("matta", trust.home())):
        above = next((path for path in (folder, *folder.parents) if path.exists()), None)
        free = shutil.disk_usage(above).free if above else None
        found[name] = {"folder": str(folder), "there": folder.exists(), "free_bytes": free}
    return found


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _hub() -> dict[str, Any]:
    """Whether the hub answers, asked for a moment only."""
    from huggingface_hub import constants

    address, heard = constants.ENDPOINT, ["does not answer"]
    if constants.HF_HUB_OFFLINE:
        return {"address": address, "reached": None, "said": "not asked, HF_HUB_OFFLINE is set"}

    def ask() -> None:
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        try:
            urlopen(Request(address, method="HEAD"), timeout=SECONDS).close()
            heard.append("answers")
        except HTTPError as error:
            heard.append(f"answers with code {error.code}")
        except (OSError, ValueError) as error:
            heard.append(f"cannot be reached ({said(error)})")

    # looking its name up is not bounded by the time that a connection may take
    asked = Thread(target=ask, daemon=True)
    asked.start()
    asked.join(SECONDS + 0.5)
    return {"address": address, "reached": heard[-1].startswith("answers"), "said": heard[-1]}
