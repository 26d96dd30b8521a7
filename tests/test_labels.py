"""Several labels an example: losses and metrics against PyTorch's and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score

from matta_cli.errors import MattaError
from matta_cli.losses.labels import counts, of_labels
from matta_cli.losses.targets import Logits, Term, TopK
from matta_cli.tasks import labels


def some(rows: int = 40, count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    own = (torch.rand(rows, count, generator=g) < 0.3).float()
    return torch.randn(rows, count, generator=g), own


def test_losses_are_pytorchs():
    logits, own = some()
    teacher, over = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)), counts(own)
    terms = [Term("truth", 0.5, None), Term("teacher", 2.0, Logits(teacher))]
    given = logits.clone().requires_grad_()
    total, values = of_labels(Logits(given), own, terms, over, 3.0)
    truth = F.binary_cross_entropy_with_logits(logits, own)
    soft = (teacher / 3).sigmoid()
    # the sum over yes and no of each label
    both = torch.stack([soft, 1 - soft]), torch.stack([logits / 3, -logits / 3]).sigmoid()
    apart = (both[0] * (both[0] / both[1]).log()).sum(0).mean() * 9
    torch.testing.assert_close(values["truth"], truth)
    torch.testing.assert_close(values["teacher"], apart)
    torch.testing.assert_close(total.detach(), 0.5 * truth + 2 * apart)
    total.backward()
    wanted = 0.5 * (logits.sigmoid() - own) / own.numel()
    wanted += 2 * 3 * ((logits / 3).sigmoid() - soft) / own.numel()
    torch.testing.assert_close(given.grad, wanted)


def test_the_parts_of_a_batch_sum_to_the_whole():
    logits, own = some()
    terms = [Term("truth", 1.0), Term("teacher", 1.0, Logits(torch.zeros(40, 5)))]
    whole = of_labels(Logits(logits), own, terms, counts(own), 2.0)[0]
    parts = [slice(0, 7), slice(7, 40)]
    each = [
        of_labels(
            Logits(logits[p]),
            own[p],
            [Term("truth", 1.0), Term("teacher", 1.0, Logits(torch.zeros(len(own[p]), 5)))],
            counts(own),
            2.0,
        )[0]
        for p in parts
    ]
    torch.testing.assert_close(sum(each), whole)


def test_a_teacher_of_labels_alone_and_of_the_likeliest():
    logits, own = some()
    _, other = some(count=5)
    values = of_labels(Logits(logits), own, [Term("teacher", 1.0, other)], counts(own), 2.0)[1]
    torch.testing.assert_close(values["teacher"], F.binary_cross_entropy_with_logits(logits, other))
    few = TopK(torch.zeros(40, 1), torch.zeros(40, 1, dtype=torch.int64), torch.zeros(40))
    for target in (few, torch.zeros(40, dtype=torch.int64)):
        with pytest.raises(MattaError, match="a number for each of its labels"):
            of_labels(Logits(logits), own, [Term("teacher", 1.0, target)], counts(own), 2.0)


@pytest.mark.parametrize("tied", [False, True])
def test_metrics_are_scikit_learns(tied):
    logits, own = some(200, 6)
    if tied:  # as resamples have it
        logits = logits.round()
    columns = {k: v.numpy() for k, v in labels.score(logits, own).items()}
    values = labels.summarize(columns, list("abcdef"))
    precision = average_precision_score(own, logits, average=None)
    f1 = f1_score(own, logits > 0, average=None)
    assert values["map"] == pytest.approx(precision.mean(), abs=1e-12)
    assert values["macro_f1"] == pytest.approx(f1.mean(), abs=1e-12)
    assert values["micro_f1"] == pytest.approx(f1_score(own, logits > 0, average="micro"))
    assert [values[f"f1:{name}"] for name in "abcdef"] == pytest.approx(list(f1), abs=1e-12)


def test_a_label_that_no_example_has_is_in_no_mean():
    logits, own = some(200, 3)
    own[:, 1] = 0
    columns = {k: v.numpy() for k, v in labels.score(logits, own).items()}
    values = labels.summarize(columns, list("abc"))
    known = {k: v[:, [0, 2]] for k, v in columns.items()}
    others = labels.summarize(known, list("ac"))
    assert values["map"] == others["map"] and values["macro_f1"] == others["macro_f1"]
    assert np.isnan(values["f1:b"])


def test_guessing_is_told():
    logits, own = some(300, 4)
    columns = {k: v.numpy() for k, v in labels.score(logits, own).items()}
    assert "guessing gives 0.5" in (labels.at_chance(columns) or "")
    better = {k: v.numpy() for k, v in labels.score(logits + 2 * own, own).items()}
    assert labels.at_chance(better) is None
    logits[3, 1] = torch.nan
    broken = {k: v.numpy() for k, v in labels.score(logits, own).items()}
    assert "1 of its 300 outputs" in (labels.at_chance(broken) or "")
    assert np.isnan(labels.summarize(broken, list("abcd"))["map"])
