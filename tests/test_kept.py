"""What a width keeps of the base, what none goes below, and widths for a budget at ``convert``."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from matta_cli.main import app
from matta_cli.settings.resolve import tomllib

SMALL = {"vocab_size": 400, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}


def typed(line: str):
    return CliRunner(env={"CI": "1", "COLUMNS": "200"}).invoke(app, shlex.split(line))


def fine(line: str):
    done = typed(line)
    assert done.exit_code == 0, done.stderr
    return done


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A GPT-2 and a BERT, in which embeddings are large."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**SMALL)).save_pretrained("gpt")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=900, intermediate_size=128, max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained("bert")
    return tmp_path


def test_convert_and_inspect_say_what_each_width_keeps_and_none_goes_below(here):
    """Beside the library's own smaller model; with the axes that would make it less."""
    done = fine("convert gpt --json")
    found = json.loads(done.stdout)
    rows = {row["width"]: row for row in found["widths"]}
    half = GPT2LMHeadModel(GPT2Config(**SMALL, n_inner=128))
    whole = GPT2LMHeadModel(GPT2Config(**SMALL))
    kept = rows[0.5]["kept"]
    assert kept["parameters"] == pytest.approx(parameters(half) / parameters(whole))
    assert kept["bytes"] == pytest.approx(kept["parameters"], abs=0.02)
    products = {width: 2 * (4 * 64 * 64 + 2 * 64 * 256 * width) + 64 * 400 for width in (0.5, 1.0)}
    attention = 2 * 2 * 32 * 64  # scores and values, per token
    expected = (products[0.5] + attention) / (products[1.0] + attention)
    assert kept["macs"] == pytest.approx(expected, abs=1e-6)
    assert rows[1.0]["kept"] == {"parameters": 1.0, "bytes": 1.0, "macs": 1.0}

    none = GPT2LMHeadModel(GPT2Config(**SMALL, n_inner=1))
    share = f"{100 * parameters(none) / parameters(whole):.0f} %"
    assert found["floor"] in done.stderr and found["floor"].startswith(
        f"No width keeps less than {share} of the parameters (transformer.wte.weight "
    )
    assert "transformer.h.*.attn.c_attn.weight " in found["floor"] and len(found["floor"]) < 180
    assert "; with `--axes mlp,heads,hidden,depth` it is " in found["floor"]
    inspected = json.loads(fine("inspect --json").stdout)
    assert inspected["floor"] == found["floor"]
    assert {row["width"]: row["kept"] for row in inspected["widths"]}[0.5] == kept
    header, *lines = (line.split("\t") for line in fine("inspect").stdout.splitlines()[-5:])
    assert header[4:7] == ["kept", "MACs kept", "bytes kept"]
    assert lines[1][4:6] == [f"{100 * kept[name]:.0f} %" for name in ("parameters", "macs")]
    fine("convert gpt --overwrite --axes mlp,heads,hidden,depth")
    assert "--axes" not in json.loads(fine("inspect --json").stdout)["floor"]


def test_a_model_all_of_which_shrinks_is_said_to_have_no_floor_to_speak_of(here):
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
    torch.save(torch.nn.Sequential(*layers).state_dict(), "ranker.pt")
    done = fine("convert ranker.pt --adapter mlp_ranker")
    assert "No width keeps less than 1.8 % of the parameters." in done.stderr


def settings_of(out: str) -> dict:
    return tomllib.loads(Path(out, "matta.toml").read_text())


def test_a_budget_at_convert_chooses_axes_and_widths(here):
    """As few kinds of axes as reach it; distill trains and export exports these widths."""
    done = fine("convert gpt --target-params 85% --target-params 50% --json")
    rows = {row["width"]: row for row in json.loads(done.stdout)["widths"]}
    narrow, wide, base = sorted(rows)
    assert 0.25 <= narrow < wide < base == 1.0
    assert rows[narrow]["kept"]["parameters"] <= 0.5 < rows[wide]["kept"]["parameters"] <= 0.85
    assert f"Note: --target-params 50%: width {narrow:g} along " in done.stderr
    left = settings_of("matta-out")
    assert left["distill"]["widths"] == left["export"]["widths"] == [narrow, wide, 1.0]
    assert "target_params" not in left["export"]
    assert "heads" in rows[narrow]["shown"] and "hidden" not in rows[narrow]["shown"]
    # the next larger width would not do
    more = json.loads(fine(f"inspect --widths {narrow + 0.06:.2f} --json").stdout)["widths"]
    assert more[0]["kept"]["parameters"] > 0.5

    done = fine("convert gpt --overwrite --target-params 85% --json")
    assert [row["shown"].split()[0] for row in json.loads(done.stdout)["widths"]] == ["mlp", "mlp"]
    done = fine("convert gpt --overwrite --target-macs 60% --axes mlp,heads --json")
    row = json.loads(done.stdout)["widths"][0]
    assert row["kept"]["macs"] <= 0.6 and "hidden" not in row["shown"]
    done = fine("convert gpt --overwrite --target-memory 500kB --target-params 200k --json")
    row = json.loads(done.stdout)["widths"][0]
    assert row["parameters"] <= 125_000
    with Path("matta-out/matta.toml").open("a") as file:
        file.write("# mine\n")
    done = fine("convert gpt --overwrite --target-params 85%")
    assert "is yours: pass --widths 0." in done.stderr


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "bert --target-params 10%",
            "--target-params 10% is not possible: at their smallest, the axes mlp, heads, depth "
            "leave 3",
        ),
        ("bert --target-params 10%", "embeddings.word_embeddings.weight [900, 32] with 28.8 k"),
        ("bert --target-params 10%", "The nearest possible is --target-params "),
        ("gpt --axes mlp --target-params 40%", "with --axes mlp,heads,hidden,depth it is possible"),
        ("gpt --target-params 2M", "--target-params 2M asks for nothing: the model itself has no"),
        ("gpt --target-params 100%", "it is above 0 and below 100 %"),
        ("gpt --target-macs much", "--target-macs 'much' is not an amount of MACs"),
    ],
)
def test_a_budget_that_is_not_possible_says_what_forbids_it(here, line, sentence):
    done = typed(f"convert {line}")
    assert done.exit_code == 1 and sentence in done.stderr
    assert not Path("matta-out").exists() or not list(Path("matta-out").iterdir())
