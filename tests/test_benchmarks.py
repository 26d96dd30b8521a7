"""Every benchmark runs, explains itself on stderr, and ends in one JSON object with its ratio."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem not in ("__init__", "common"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_run(name):
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (
        result["benchmark"] == name
        and result.get("ratio", 1.0) > 0
        and result.get("failed") is None
        and result["device"]
        and result["versions"]["torch"]
    )
    assert done.stderr.strip()
