"""Every benchmark runs, explains itself on stderr, and ends in one JSON object that says what it
found.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = os.environ.get("MATTA_TEST_DATA", "")


def quick(name: str, *more: str) -> dict:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip()
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["benchmark"] == name and found["device"] and found["versions"]["torch"]
    return found


@pytest.mark.slow
def test_export_speed():
    assert quick("export_speed")["ratio"] > 0


@pytest.mark.slow
def test_native_latency():
    found = quick("native_latency")
    assert len(found["cases"]) == 4 and found["holds"] == (found["ratio"] <= found["bound"])
    assert found["ratio"] == max(case["ratio"] for case in found["cases"].values()) > 0.2


@pytest.mark.slow
def test_support():
    """The table says what the command finds now, but for versions and for what depends on them: how
    much grows, auto.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.support"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [
        [
            [cell.strip() for cell in line.split("|")[1:8]]
            for line in text.splitlines()
            if line.startswith("| ")
        ]
        for text in (done.stdout, (ROOT / "docs" / "support.md").read_text())
    ]
    assert rows[0] == rows[1] and len(rows[0]) > 30
    assert all(row[3] == row[4] == "yes" for row in rows[0][1:])


@pytest.mark.slow
def test_ordering():
    found = quick("ordering")
    for case in found["cases"].values():
        assert all(
            row["random_range"][0] <= row["random"] <= row["random_range"][1]
            for row in case["cuts"].values()
        )
    assert set(found["relative_to_random"]["gpt2"]) == {"mlp", "heads", "hidden", "depth"}
    assert found["relative_to_random"]["gpt2"]["mlp"]["activation"] < 1


@pytest.mark.slow
def test_convert_scale():
    [case] = quick("convert_scale")["cases"].values()
    assert (
        case["holds"] == (case["convert_memory_ratio"] <= 1.3)
        and case["convert"]["added"] > 0.9 * case["ta_bytes"]
    )


@pytest.mark.slow
def test_step_time():
    found = quick("step_time")
    assert found["holds"] == (found["ratio"] <= found["bound"])
    for case in found["cases"].values():
        models = ["TA", "0.25", "0.5", "1"]
        assert list(case["medians_s"]) == ["matta", "teacher_forward", *models]


@pytest.mark.slow
def test_memory():
    found = quick("memory")
    peaks = {variant: each["peak"] for variant, each in found["bytes"].items()}
    assert all(each["peak"] > each["before_the_step"] > 0 for each in found["bytes"].values())
    assert peaks["ta_chunked"] < peaks["ta_whole"] and peaks["matta_micro_batch_2"] < peaks["matta"]
    assert 0.5 < found["ratio_in_use"] < 3 and found["holds"] == (found["ratio"] <= found["bound"])


@pytest.mark.slow
def test_gpu_suite(tmp_path):
    found = quick("gpu_suite", "--out", str(tmp_path / "found.json"))
    assert found["holds"] and found["toy"]
    speeds = [
        found[part]
        for part in (
            "eager",
            "eager_whole_logits",
            "eager_chunked_logits",
            "checkpointed",
            "compiled",
        )
    ]
    assert all("failed" not in part and part["tokens_per_s"] > 0 for part in speeds)
    assert json.loads((tmp_path / "found.json").read_text())["compiled"] == found["compiled"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="MATTA_TEST_DATA names no folder of data")
def test_quantized(tmp_path):
    more = ("--steps", "2", "--quantize", "int8", "--cache", str(tmp_path))
    found = quick("quantized", "--data", DATA, "--problems", "lambdarank", *more)
    [models] = (problem["models"] for problem in found["problems"].values())
    bytes_of = {model["model"]: model["bytes"] for model in models}
    judged = {model["model"] for model in models if model["verdict"]}
    assert judged == {"width 0.5 int8", "width 1 int8"} and len(models) == 4
    assert bytes_of["width 1 int8"] < bytes_of["width 1"]


@pytest.mark.slow
def test_quantized_adapters():
    found = quick("quantized_adapters", "--adapters", "vit", "--steps", "2")["adapters"]["vit"]
    whole, int8 = found["models"]
    assert (whole["model"], int8["model"]) == ("width 0.5", "width 0.5 int8")
    assert int8["verdict"] and int8["bytes"] < whole["bytes"] and found["metric"]
    assert len(found["processor_seconds"]) == 2 and min(found["processor_seconds"]) > 0


def test_every_benchmark_is_tested():
    parts = {"__init__", "common", "gpu_checks", "support_words"}
    names = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - parts
    assert names == {
        name.removeprefix("test_") for name in globals() if name.removeprefix("test_") in names
    }


def test_results_name_their_device_and_no_path():
    for file in RESULTS.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        found = json.loads(text)
        assert file.stem.startswith(found["benchmark"]) and found["versions"]["torch"], file.name
        assert "/tmp" not in text and "/home" not in text and "/root" not in text, file.name


@pytest.mark.slow
def test_budgets():
    found = quick("budgets", "--adapter", "mlp_ranker")
    for width in found["runs"][0]["widths"].values():
        assert (
            width["used"] <= 1
            and width["difference"]["low"]
            <= width["difference"]["value"]
            <= width["difference"]["high"]
        )


@pytest.mark.slow
def test_ordering_examples():
    """What convert reads orders units nearly as well as much more."""
    cases = quick("ordering_examples")["cases"]
    assert all(list(c["examples"].values())[1]["correlation"] > 0.9 for c in cases.values())
    stored = json.loads((RESULTS / "ordering_examples-cpu.json").read_text())
    assert stored["holds"] and not stored["quick"]
