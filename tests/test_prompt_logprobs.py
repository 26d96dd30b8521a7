"""What a server says about the tokens of prompts, as a Teacher's file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from matta_cli.errors import MattaError
from matta_cli.losses.targets import Logits, Term, TopK
from tests.sample_text import prose
from tests.test_chat import gpt2, recipe, run, talks, tokenizer_of, written

K = 5


def said_by(model, ids, k=K, as_text=False):
    """What vLLM writes about a prompt: the likeliest tokens of each position, and its own."""
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    entries = [None]
    for position, token in enumerate(ids[1:]):
        known = log_p[position]
        tokens = dict.fromkeys([token, *known.topk(k).indices.tolist()])
        ranks = {t: int((known > known[t]).sum()) + 1 for t in tokens}
        entries.append(
            {
                str(t): {"logprob": known[t].item(), "rank": ranks[t], "decoded_token": "x"}
                for t in tokens
            }
        )
    return entries


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A TA of conversations and one of text, with the prompts of both."""
    folder = tmp_path_factory.mktemp("logged")
    gpt2().save_pretrained(folder / "base")
    tokenizer_of().save_pretrained(folder / "base")
    written(folder / "talk.jsonl", talks(10))
    (folder / "text.txt").write_text(prose(60))
    for name, data in {"talk": "talk.jsonl", "text": "text.txt"}.items():
        data = f"--data {folder / data} --sequence-length 64"
        run(f"convert {folder / 'base'} {data} --expand 1 --out {folder / name}")
        run(f"teach --out {folder / name} {data} --prompts {folder / name}.prompts.jsonl")
    return folder


def lines(folder, kind):
    text = (folder / f"{kind}.prompts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in text]


def setup_of(folder, kind, rows, tmp_path, **distill):
    from matta_cli.training.setup import opened

    data = {"talk": "talk.jsonl", "text": "text.txt"}[kind]
    found = recipe(train=str(folder / data), sequence_length=64)
    teacher = str(written(tmp_path / "said.jsonl", rows))
    settings = {"temperature": 1.0, "allow_weak_teacher": True, "teacher": teacher}
    found.update({"distill": {**settings, **distill}}, "test")
    return opened(found, folder / kind, torch.device("cpu"))


@pytest.mark.parametrize("sent", [True, False], ids=["sent", "not-sent"])
@pytest.mark.parametrize("kind", ["talk", "text"])
def test_it_teaches_what_the_likeliest_tokens_of_the_model_do(folder, tmp_path, kind, sent):
    """But at the last position, of which nobody says anything."""
    teacher, rows = gpt2(seed=1, width=24), []
    for line in lines(folder, kind):
        ids = line["prompt_token_ids"]
        own = line if sent else {"row": line["row"]}
        rows.append({**own, "prompt_logprobs": said_by(teacher, ids)})
    setup = setup_of(folder, kind, rows[::-1], tmp_path)
    task, chosen = setup.task, [2, 0, 5]
    batch = setup.data.train.batch(chosen)
    logits = task.forward(setup.ta.model.eval(), batch).detach().requires_grad_()
    terms = [Term("teacher", 1.0, setup.teacher(batch, chosen))]
    value, _ = task.objective(Logits(logits), batch, terms)
    value.backward()

    # by hand: the likeliest and the token that is there, and all others as one
    counted, total = 0, 0.0
    for row, number in enumerate(chosen):
        ids = lines(folder, kind)[number]["prompt_token_ids"]
        with torch.no_grad():
            log_q = teacher(torch.tensor([ids])).logits[0].log_softmax(-1)
        log_p = logits.detach()[row].log_softmax(-1)
        for position in range(len(ids) - 1):
            if kind == "talk" and not batch["predicted"][row, position + 1]:
                continue
            known = {ids[position + 1], *log_q[position].topk(K).indices.tolist()}
            index = torch.tensor([sorted(known)])
            at = log_q[position][None]
            rest = at.exp().scatter(1, index, 0.0).sum(1).log()
            target = TopK(at.gather(1, index), index, rest)
            both = target.log_q(slice(None), log_p[position][None])
            total += float((both.exp() * (both - log_p[position])).sum())
            counted += 1
    assert task.counts(batch)["outputs"] == counted
    assert value.item() == pytest.approx(total / counted, rel=1e-4)
    assert (logits.grad.abs().sum(-1) > 0).sum() == counted
    if kind == "text":
        assert not logits.grad[:, -1].any()


def test_a_run_goes_on_the_file(folder, tmp_path):
    rows = [
        {**line, "prompt_logprobs": said_by(gpt2(seed=1), line["prompt_token_ids"])}
        for line in lines(folder, "talk")
    ]
    said = written(tmp_path / "said.jsonl", rows)
    (tmp_path / "one.toml").write_text("[distill]\ntemperature = 1.0\n")
    data = f"--data {folder / 'talk.jsonl'} --sequence-length 64 --config {tmp_path / 'one.toml'}"
    few = "--steps 2 --batch-size 4 --widths 0.5,1.0 --allow-weak-teacher"
    run(f"distill --out {folder / 'talk'} --teacher {said} {data} {few}")
    assert (folder / "talk" / "run" / "metrics.jsonl").exists()


def without_row(rows):
    rows[1].pop("row")


def without_null(rows):
    rows[1]["prompt_logprobs"][0] = {}


def shorter(rows):
    rows[1]["prompt_logprobs"].pop()


def other_tokens(rows):
    rows[1]["prompt_token_ids"][3] += 1


def not_there(rows):
    for row in rows:
        row.pop("prompt_token_ids")
    rows[1]["prompt_logprobs"][4] = {"299": {"logprob": -0.1}}


def unknown(rows):
    rows[1]["prompt_logprobs"][4] = {"300": {"logprob": -0.1}}


def bare(rows):
    rows[1]["prompt_logprobs"][4] = {"7": -0.1}


def probabilities(rows):
    rows[1]["prompt_logprobs"][4] = {"7": {"logprob": 0.9}}


def scaled(rows):
    for row in rows:
        for entry in filter(None, row["prompt_logprobs"]):
            whole = math.log(sum(math.exp(own["logprob"]) for own in entry.values()))
            for own in entry.values():
                own["logprob"] -= whole


def missing(rows):
    rows.pop()


def twice(rows):
    rows[0]["row"] = 1


ODD = {
    without_row: "line 2 has no 'row'",
    without_null: "must be a list of null and a dictionary",
    shorter: "row 1 has .* tokens, the training example .*matta teach --prompts",
    other_tokens: "row 1, position 3: the token .* is not the one sent",
    not_there: "row 1, position 4: .* not the one among those that it names",
    unknown: "names the token 300, but the model's vocabulary is 300",
    bare: "entry 4 of 'prompt_logprobs' is not a dictionary",
    probabilities: "entry 4 of 'prompt_logprobs' holds no log-probabilities",
    scaled: "of all its positions sum to 1, .*: let it say them .*raw_logprobs",
    missing: "1 of the 9 training examples are not in it",
    twice: "the key 1 occurs 2 times",
}


@pytest.mark.parametrize("change", ODD, ids=lambda change: change.__name__)
def test_what_does_not_fit_is_refused(folder, tmp_path, change):
    model = gpt2(seed=1)
    rows = [
        {**line, "prompt_logprobs": said_by(model, line["prompt_token_ids"], 2)}
        for line in lines(folder, "talk")
    ]
    change(rows)
    with pytest.raises(MattaError, match=ODD[change]):
        setup_of(folder, "talk", rows, tmp_path)


def test_it_is_of_temperature_1(folder, tmp_path):
    rows = [{"row": 0, "prompt_logprobs": [None, {"1": {"logprob": -0.5}}]}]
    with pytest.raises(MattaError, match=r"by the temperature 1, but distill\.temperature is 2"):
        setup_of(folder, "talk", rows, tmp_path, temperature=2.0)


def test_prompts_are_the_tokens_of_each_example(folder):
    prompts = lines(folder, "text")
    assert [line["row"] for line in prompts] == list(range(len(prompts)))
    assert {len(line["prompt_token_ids"]) for line in prompts} == {64}
    assert len({len(line["prompt_token_ids"]) for line in lines(folder, "talk")}) > 1
    assert Path(folder / "talk.prompts.jsonl").read_text().count("\n") == 9
