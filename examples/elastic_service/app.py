"""Sentence embeddings over HTTP: one TA, and a width for each request.

A request runs at the widest of WIDTHS at which all that wait are answered within the target.

    TARGET_MS=200 WIDTHS=0.25,0.5,1.0 uvicorn app:app
"""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoTokenizer

import matta_cli

OUT = os.environ.get("MATTA_OUT", "matta-out")
WIDTHS = sorted(map(float, os.environ.get("WIDTHS", "0.25,0.5,1.0").split(",")))
TARGET = float(os.environ.get("TARGET_MS", "200")) / 1000
HEADROOM = 0.5  # the share of the target that is planned with: requests come unevenly

ta = matta_cli.load_ta(OUT)  # its weights are in memory once, whatever the widths
tokenizer = AutoTokenizer.from_pretrained(f"{OUT}/ta")
workers = ThreadPoolExecutor(1)  # how many requests run at once: ta.at(...) takes any number
cost: dict[float, float] = {}  # seconds of a sentence at each width, when the service began
pace = 1.0  # how many times as long sentences take lately
waiting = 0  # sentences
app = FastAPI()


class Texts(BaseModel):
    sentences: list[str]


def width_for(queue: int) -> float:
    """The widest width at which so many sentences are through in time; else the narrowest."""
    fits = [width for width in WIDTHS if queue * pace * cost[width] <= HEADROOM * TARGET]
    return max(fits, default=WIDTHS[0])


@torch.inference_mode()
def embed(sentences: list[str], width: float) -> tuple[float, list[list[float]]]:
    """Seconds of a sentence, and the embeddings."""
    start = time.perf_counter()
    tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    states = ta.at(width)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    return (time.perf_counter() - start) / len(sentences), vectors.tolist()


def run(sentences: list[str]) -> tuple[float, list[list[float]]]:
    """A request whose turn has come: the width that it gets, and the embeddings."""
    global pace
    width = width_for(waiting)
    seconds, vectors = embed(sentences, width)
    pace += 0.2 * (seconds / cost[width] - pace)
    return width, vectors


@app.post("/embed")
async def answer(texts: Texts) -> dict[str, object]:
    global waiting
    waiting += len(texts.sentences)
    try:
        loop = asyncio.get_running_loop()
        width, vectors = await loop.run_in_executor(workers, run, texts.sentences)
    finally:
        waiting -= len(texts.sentences)
    return {"width": width, "vectors": vectors}


for own in WIDTHS:  # make the widths, and see what they take
    some = ["A sentence of about as many words as those that are going to come."] * 4
    cost[own] = min(embed(some, own)[0] for _ in range(6))
