"""A load that rises, on two services in turns: one has all widths, the other 1.0 alone.

    python load.py --file stsbenchmark/sts-test.csv

Requests come at chance times at a given rate, whether or not the ones before are answered, and are
timed from when they were due. Rates are multiples of what width 1.0 answers in a second. Both
services are started for it, and one is idle while the other is measured.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

URL = "http://127.0.0.1:{port}/embed"


@contextmanager
def service(widths: str, port: int) -> Iterator[str]:
    """The URL of a service of these widths, which ends with the block."""
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    command += ["--log-level", "warning"]
    here = Path(__file__).parent
    out = Path(os.environ.get("MATTA_OUT", "matta-out")).resolve()
    environment = {**os.environ, "WIDTHS": widths, "MATTA_OUT": str(out)}
    with subprocess.Popen(command, cwd=here, env=environment) as process:
        try:
            for _ in range(600):
                try:
                    httpx.get(f"http://127.0.0.1:{port}/docs")
                    break
                except httpx.ConnectError:
                    if process.poll() is not None:
                        raise SystemExit("The service did not start.") from None
                    time.sleep(0.2)
            yield URL.format(port=port)
        finally:
            process.terminate()


def capacity(url: str, requests: list[list[str]]) -> float:
    """Requests in a second, one after the other."""
    with httpx.Client(timeout=60) as client:
        start = time.perf_counter()
        for sentences in requests:
            client.post(url, json={"sentences": sentences}).raise_for_status()
        return len(requests) / (time.perf_counter() - start)


async def stage(url: str, rate: float, span: float, requests: list[list[str]], seed: int):
    """Seconds and width of each request that was due within ``span`` seconds."""
    draws, due, answers = random.Random(seed), 0.0, []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        start = time.perf_counter()

        async def one(at: float) -> tuple[float, float]:
            await asyncio.sleep(at - (time.perf_counter() - start))
            reply = await client.post(url, json={"sentences": draws.choice(requests)})
            reply.raise_for_status()
            return time.perf_counter() - start - at, reply.json()["width"]

        while (due := due + draws.expovariate(rate)) < span:
            answers.append(asyncio.create_task(one(due)))
        return await asyncio.gather(*answers)


def row(arm: str, load: float, rate: float, answers: list[tuple[float, float]]) -> dict:
    taken = sorted(seconds for seconds, _ in answers)
    widths = Counter(width for _, width in answers)
    return {
        "widths": arm,
        "load": load,
        "rate": rate,
        "requests": len(taken),
        "p50": statistics.median(taken),
        "p95": taken[max(0, -(-95 * len(taken) // 100) - 1)],
        "shares": {f"{width:g}": widths[width] / len(taken) for width in sorted(widths)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--file", required=True, help="tab-separated, sentences in the last two")
    parser.add_argument("--widths", default="0.25,0.5,1.0")
    parser.add_argument("--loads", default="0.3,0.6,0.9,1.2,1.5,2")
    parser.add_argument("--seconds", type=float, default=10, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=4, help="in a request")
    parser.add_argument("--port", type=int, default=8765, help="of one; the other has the next")
    given = parser.parse_args()
    lines = Path(given.file).read_text("utf-8").splitlines()
    texts = [cell for line in lines for cell in line.split("\t")[-2:]]
    size = given.sentences
    requests = [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)]
    with service("1.0", given.port) as fixed, service(given.widths, given.port + 1) as elastic:
        arms = {"1.0": fixed, given.widths: elastic}
        for url in arms.values():
            capacity(url, requests[:10])
        whole = capacity(fixed, requests[10:50])
        print(f"Width 1.0 answers {whole:.1f} requests of {size} sentences in a second.")
        print("widths\tload\trate/s\trequests\tp50 ms\tp95 ms\tshare of each width")
        done = []
        for load in map(float, given.loads.split(",")):
            answers: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
            for turn in range(given.rounds):
                for arm, url in arms.items():
                    one = stage(url, load * whole, given.seconds, requests, turn)
                    answers[arm] += asyncio.run(one)
            for arm in arms:
                done.append(row(arm, load, load * whole, answers[arm]))
                print(shown(done[-1]), flush=True)
    print(json.dumps({"requests_per_second": whole, "stages": done}))


def shown(one: dict) -> str:
    shares = " ".join(f"{width}: {share:.0%}" for width, share in one["shares"].items())
    times = f"{one['p50'] * 1e3:.0f}\t{one['p95'] * 1e3:.0f}"
    known = f"{one['widths']}\t{one['load']:g}\t{one['rate']:.1f}\t{one['requests']}"
    return f"{known}\t{times}\t{shares}"


if __name__ == "__main__":
    main()
