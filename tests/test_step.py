"""The gradients of a step: against float64 autograd, and the same however they are computed."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from matta_cli.adapter import Axis, Slice
from matta_cli.errors import MattaError
from matta_cli.losses import classes
from matta_cli.losses.targets import Logits, Sampled, Term, TopK
from matta_cli.measure import cost
from matta_cli.models import plugins
from matta_cli.models.ta import TA, UnsharedTA
from matta_cli.nested import grow, sizes
from matta_cli.settings.recipe import Recipe, choices
from matta_cli.tasks import task as tasks_task
from matta_cli.training import objective
from matta_cli.training.objective import Step
from matta_cli.training.optimizer import make_optimizer, untouched
from matta_cli.training.rows import Rows
from matta_cli.training.state import restore, state_of
from matta_cli.training.teach import draw
from matta_cli.training.teacher import ModelTeacher, halve

N, D, V, TAU = 6, 5, 11, 2.0
OVER = {"labels": 4.0, "outputs": 6.0}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(z_p, z_q):
    """KL(q || p), softened, in float64, as autograd differentiates it."""
    log_p, log_q = F.log_softmax(z_p / TAU, -1), F.log_softmax(z_q / TAU, -1)
    return (log_q.exp() * (log_q - log_p)).sum() * TAU**2 / OVER["outputs"]


def leaves(*tensors, dtype=torch.float64):
    return [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]


@pytest.mark.parametrize("product, kept", [(False, 0), (True, 0), (True, 3), (True, N)])
@pytest.mark.parametrize("chunk", [1 << 24, 2 * V])
def test_losses_and_their_gradients(product, kept, chunk, monkeypatch):
    for name in ("_CHUNK", "_PRODUCT_CHUNK"):
        monkeypatch.setattr(classes, name, chunk)
    labels = torch.tensor([1, 4, classes.IGNORED, 0, 10, classes.IGNORED])
    if product:
        given = [
            normal(s, *shape)
            for s, shape in enumerate([(N, D), (V, D), (V,), (N, D), (V, D), (V,)])
        ]
    else:
        given = [normal(0, N, V) * 2, normal(1, N, V) * 2]
    make = lambda t: (Logits(*t[:3]), Logits(*t[3:])) if product else (Logits(t[0]), Logits(t[1]))  # noqa: E731

    exact = leaves(*given)
    model, target = make(exact)
    truth = F.cross_entropy(model.whole(), labels, reduction="sum") / OVER["labels"]
    soft = reference(model.whole(), target.whole().detach())
    (0.3 * truth + 0.7 * soft).backward()

    own = leaves(*given, dtype=torch.float32)
    model, target = (side.keep(4 * V * kept) for side in make(own))
    assert (0 if target.kept is None else len(target.kept)) == kept
    terms = [Term("truth", 0.3), Term("ta", 0.7, target)]
    total, values = classes.of_classes(model, labels, terms, OVER, TAU)
    (2 * total).backward()
    torch.testing.assert_close(
        values, {"truth": truth.float().detach(), "ta": soft.float().detach()}, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        total.item(), (0.3 * truth + 0.7 * soft).item(), rtol=1e-5, atol=1e-6
    )
    for a, b in zip(own, exact, strict=True):
        if b.grad is None:  # of the target, which is a constant
            assert a.grad is None
        else:
            torch.testing.assert_close(a.grad, 2 * b.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, V])
def test_top_k_is_the_divergence_of_k_and_the_rest(k):
    z_p, z_q = normal(0, N, V).requires_grad_(), normal(1, N, V)
    log_q = F.log_softmax(z_q / TAU, -1)
    known, index = log_q.topk(k)
    rest = log_q.scatter(1, index, -torch.inf).logsumexp(-1)
    log_p = F.log_softmax(z_p / TAU, -1)

    def pick(log, others):
        return torch.cat([log.gather(1, index), others[:, None]][: 1 if k == V else 2], 1)

    p = pick(log_p, log_p.scatter(1, index, -torch.inf).logsumexp(-1))
    q = pick(log_q, rest)
    value = (q.exp() * (q - p)).sum() * TAU**2 / OVER["outputs"]
    value.backward()
    z = z_p.detach().float().requires_grad_()
    target = TopK(known.float(), index, rest.float())
    total, _ = classes.of_classes(
        Logits(z), torch.zeros(N), [Term("teacher", 1.0, target)], OVER, TAU
    )
    total.backward()
    torch.testing.assert_close(total.item(), value.item(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(z.grad, z_p.grad.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("k", "draws"), [(1, 2), (3, 1), (2, 5)])
def test_what_is_drawn_teaches_on_average_what_the_whole_distribution_does(k, draws):
    """Over all starts of the draws, the mean loss and gradient are those in closed form."""
    z_p, z_q = normal(0, N, V).requires_grad_(), normal(1, N, V)
    log_q, log_p = F.log_softmax(z_q / TAU, -1), F.log_softmax(z_p / TAU, -1)
    value = (log_q.exp() * (log_q - log_p)).sum() * TAU**2 / OVER["outputs"]
    value.backward()
    known, index = log_q.topk(k)
    others = log_q.exp().scatter(1, index, 0.0)
    entropy = -(log_q.exp() * log_q).sum(1)
    starts, totals, gradients = (torch.arange(500) + 0.5) / 500, [], []
    for start in starts.double():
        drawn = draw(others, draws, start.expand(N))
        assert not (drawn[:, :, None] == index[:, None]).any()  # those are known already
        target = Sampled(known.float(), index, drawn, entropy.float())
        assert torch.allclose(target.probabilities(z_p).sum(1), torch.ones(N, dtype=z_p.dtype))
        z = z_p.detach().float().requires_grad_()
        total, _ = classes.of_classes(
            Logits(z), torch.zeros(N), [Term("teacher", 1.0, target)], OVER, TAU
        )
        total.backward()
        totals.append(total.item())
        gradients.append(z.grad)
    assert max(totals) > 1.01 * min(totals)  # what is drawn differs from start to start
    assert sum(totals) / len(totals) == pytest.approx(value.item(), rel=5e-3)
    gap = torch.stack(gradients).mean(0) - z_p.grad.float()
    assert gap.abs().max() < 1e-2 * z_p.grad.abs().max()


def test_draws_are_as_many_as_a_class_should_have():
    q = normal(2, N, V).softmax(-1)
    q[:, 3] = 0.0
    drawn = draw(q, 40, torch.rand(N, dtype=torch.float64))
    counts = F.one_hot(drawn, V).sum(1)
    expected = 40 * q / q.sum(1, keepdim=True)
    assert ((counts - expected).abs() < 1 + 1e-9).all() and not counts[:, 3].any()


def test_labels_of_a_teacher_are_cross_entropy():
    z, said = normal(0, N, V).float(), torch.arange(N)
    total, _ = classes.of_classes(
        Logits(z), torch.zeros(N), [Term("teacher", 1.0, said)], {"labels": N, "outputs": N}, TAU
    )
    torch.testing.assert_close(total, F.cross_entropy(z, said))


# --------------------------------------------------------------------------------------------------


def gpt2(width, layers=2, seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=64,
        n_positions=16,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def tools(**settings):
    """A recipe, its task, a TA, a Teacher and a batch of four."""
    recipe = Recipe()
    recipe.distill.ramp, recipe.distill.ta_student_weight = 0.0, 0.5
    recipe.update({"distill": settings}, "test")
    adapter = plugins.adapter("gpt2")
    base = gpt2(16)
    axes = sizes.nested_axes(adapter, base)
    grown = grow.grow(adapter, base, axes, {a.name: 2 * a.size for a in axes})
    with torch.no_grad():
        for parameter in grown.parameters():  # the new units must have a say
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    ta = TA(adapter, grown, sizes.nested_axes(adapter, grown), {a.name: a.size for a in axes}, {})
    task = tasks_task.task("causal_lm", recipe)
    batch = {"input_ids": torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(2))}
    return recipe, task, ta, gpt2(24, seed=3).requires_grad_(False), batch


def made(recipe, task, ta, teacher, batch):
    teacher = teacher if isinstance(teacher, ModelTeacher) else ModelTeacher(task, teacher)
    return Step(recipe.distill, task, ta, teacher, batch, torch.device("cpu"))


def gradients(rows="all", **settings):
    """The TA's gradients after one step, and the step's terms."""
    recipe, task, ta, teacher, batch = tools(rows=rows, **settings)
    if not recipe.distill.shared:
        ta = UnsharedTA.start(ta, recipe.distill.widths)
    step = made(recipe, task, ta, teacher, batch)
    found: dict = {}
    over = task.counts(batch)
    for piece in step.rows.pieces(range(4), 5):
        part = {k: v[piece.rows] for k, v in batch.items()}
        for model, terms in step(part, piece, 5, over).items():
            for name, value in terms.items():
                found[model, name] = found.get((model, name), 0.0) + float(value)
    return {n: p.grad for n, p in ta.model.named_parameters()}, found, (step, ta)


def same(a, b, rtol=1e-4, atol=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


def losses(settings, teacher, ids):
    """The losses of the paper against the Teacher, and against other logits: means over rows."""
    s, tau = settings, settings.temperature

    def kd(z, t):
        z, t = (F.log_softmax(logits / tau, -1) for logits in (z, t))
        return F.kl_div(z, t, log_target=True, reduction="sum") * tau**2 / ids.numel()

    def own(z):
        truth = F.cross_entropy(z[:, :-1].reshape(-1, 64), ids[:, 1:].reshape(-1))
        return (1 - s.teacher_mix) * truth + s.teacher_mix * kd(z, teacher(ids).logits)

    return own, kd


def plain():
    """The objective of the paper, written down once with stock modules and autograd."""
    recipe, task, ta, teacher, batch = tools()
    s, ids = recipe.distill, batch["input_ids"]
    own, kd = losses(s, teacher, ids)
    z_ta = ta.model(ids).logits
    total = own(z_ta)
    for width in (0.25, 0.5, 1.0):
        z = ta.student(width).view()(input_ids=ids).logits
        total = total + (own(z) + s.ta_student_weight * kd(z, z_ta.detach())) / 3
    total.backward()
    return {n: p.grad for n, p in ta.model.named_parameters()}


@pytest.mark.parametrize("logits", ["whole", "chunked"])
def test_a_step_is_the_objective(logits):
    found, terms, (step, _) = gradients(logits=logits)
    assert step.chunked == (logits == "chunked") and ("0.25", "ta") in terms
    same(found, plain())


@pytest.mark.parametrize(
    "settings",
    [
        {"checkpoint_activations": True},
        pytest.param({"compile": "aot_eager"}, marks=pytest.mark.slow),
        pytest.param(
            {"compile": "aot_eager", "checkpoint_activations": True, "logits": "chunked"},
            marks=pytest.mark.slow,
        ),
        {"precision": "tf32"},
    ],
    ids=str,
)
def test_a_step_is_the_same_however_it_is_computed(settings):
    expected, terms, _ = gradients()
    found, own, _ = gradients(**settings)
    same(found, expected)
    assert own == pytest.approx(terms, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_of_a_backward_pass_are_those_of_the_precision(precision):
    recipe, task, ta, teacher, batch = tools(precision=precision, rows="all")
    seen = set()
    for parameter in ta.model.parameters():
        parameter.register_hook(
            lambda _: seen.add(
                (
                    torch.backends.cudnn.allow_tf32,
                    torch.get_float32_matmul_precision(),
                    torch.is_autocast_enabled("cpu"),
                )
            )
        )
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    step = made(recipe, task, ta, teacher, batch)
    step(batch, *step.rows.pieces([0, 1, 2, 3], 5), 5)
    expected = {"fp32": (False, "highest"), "tf32": (True, "high"), "bf16": before}
    assert seen == {(*expected[precision], False)}
    assert before == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())


def noted(teacher, called, batch, rows):
    called += rows
    return teacher(batch, rows)


@pytest.mark.parametrize(("rows", "share"), [("divided", 1 / 3), ("all", 1.0)])
def test_a_teacher_that_nobody_follows_is_not_asked(rows, share):
    """Students that follow the TA alone need the Teacher only where the TA itself learns."""
    asked, counted = {}, {}
    for whom in ("both", "ta"):
        recipe, task, ta, teacher, batch = tools(
            rows=rows, students_learn_from=whom, widths=[0.25, 0.5]
        )
        batch = {"input_ids": batch["input_ids"][:3]}
        step = made(recipe, task, ta, teacher, batch)
        called = []
        step.teacher = partial(noted, step.teacher, called)
        for piece in step.rows.pieces(range(3), 5):
            step({k: v[piece.rows] for k, v in batch.items()}, piece, 5)
        asked[whom] = len(called)
        counted[whom] = made(recipe, task, ta, teacher, batch).flops(batch)
    one = 2 * cost.macs(task, teacher, {"input_ids": batch["input_ids"][:1]})
    assert asked == {"both": 3, "ta": round(3 * share)}
    assert counted["both"] - counted["ta"] == pytest.approx((1 - share) * one)


@pytest.mark.parametrize("logits", ["whole", "chunked"])
def test_a_teacher_of_half_the_bits_is_counted_and_split_as_it_was(logits):
    found = []
    for precision in ("fp32", "bf16"):
        recipe, task, ta, teacher, batch = tools(precision=precision, logits=logits)
        if precision == "bf16":
            halve(teacher, torch.bfloat16)  # as a run does
        teacher = ModelTeacher(task, teacher)
        step = made(recipe, task, ta, teacher, batch)
        found.append((step.flops(batch), teacher.output is not None))
    assert found[0] == found[1]


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=8)
def test_all_compiled_steps_of_a_process_are_compiled():
    torch._dynamo.reset()
    made = []
    for precision, logits in itertools.product(("fp32", "bf16"), ("whole", "chunked")):
        before = Step.graphs()
        gradients(compile="aot_eager", precision=precision, logits=logits)
        made.append(Step.graphs() - before)
    # one for the blocks of each width and type, and two for losses with and without the TA's; how
    # logits are made has no part in them
    assert made == [6, 0, 6, 0]


def test_kept_logits_are_made_once_and_change_nothing(monkeypatch):
    calls = []
    linear = F.linear
    monkeypatch.setattr(
        F,
        "linear",
        lambda x, weight, bias=None: calls.append(len(weight)) or linear(x, weight, bias),
    )
    expected, terms, _ = gradients(logits="chunked")
    before = calls.count(64)
    monkeypatch.setitem(objective._KEPT, "cpu", 1 << 20)
    calls.clear()
    found, own, _ = gradients(logits="chunked")
    # the Teacher's and the TA's: 3 Students no longer make them again
    assert before - calls.count(64) == 2 * 3
    same(found, expected, rtol=0, atol=0)
    assert own == terms


def test_micro_batches_add_up_to_the_batch():
    expected, terms, _ = gradients()
    found, own, _ = gradients(micro_batch=1, logits="chunked")
    same(found, expected)
    assert own == pytest.approx(terms, rel=1e-4)


# Divided rows: each goes through one model

BY_SHARE = [1.0, 2.0, 1.0, 4.0]  # of the widths 0.25, 0.5 and 1.0, and of the TA


def divided(settings, which):
    """The objective of divided rows. which: the model of each row."""
    recipe, task, ta, teacher, batch = tools(**settings)
    s, total = recipe.distill, 0.0
    for row, width in enumerate(which):
        ids = batch["input_ids"][[row]]
        own, kd = losses(s, teacher, ids)
        z = ta.student(width).view()(input_ids=ids).logits
        total = total + own(z) / len(which)
        if width < 2.0:
            taught = ta.model(ids).logits.detach()
            total = total + s.ta_student_weight * kd(z, taught) / len(which)
    total.backward()
    return {n: p.grad for n, p in ta.model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "which"),
    [
        ({}, [2.0, 0.25, 0.5, 1.0]),
        ({"ta_student_weight": 0.0, "logits": "chunked"}, [2.0, 0.25, 0.5, 1.0]),
        ({"shares": [1.0, 1e-9, 1e-9, 1.0], "ta_student_weight": 0.0}, [2.0, 2.0, 0.25, 0.25]),
        ({"widths": [0.5], "micro_batch": 1}, [2.0, 0.5, 2.0, 0.5]),
    ],
    ids=str,
)
def test_a_step_of_divided_rows_is_the_objective(settings, which):
    found, terms, (step, _) = gradients(rows="divided", **settings)
    assert {name for name, _ in terms} == {"TA" if w == 2.0 else f"{w:g}" for w in which}
    same(found, divided(settings, which))


def test_a_model_of_a_step_gets_its_share_of_the_rows_on_average():
    recipe, _, ta, *_ = tools(shares=BY_SHARE)
    rows = Rows(recipe.distill, ta)
    counts = dict.fromkeys(["0.25", "0.5", "1", "TA"], 0)
    steps, batch = 4000, 5
    for step in range(steps):
        pieces = rows.pieces(range(batch), step)
        assert sorted(row for piece in pieces for row in piece.rows) == list(range(batch))
        for piece in pieces:
            [[name]] = piece.groups
            counts[name] += len(piece.rows)
            assert piece.among[name] == 1
    shares = {name: count / steps / batch for name, count in counts.items()}
    wanted = dict(zip(counts, (share / sum(BY_SHARE) for share in BY_SHARE), strict=True))
    assert shares == pytest.approx(wanted, abs=0.01)
    assert rows.pieces(range(batch), 7) == Rows(recipe.distill, ta).pieces(range(batch), 7)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 8, 16, 30])
@pytest.mark.parametrize("micro", [0, 1, 3])
@pytest.mark.parametrize("shares", [[], BY_SHARE, [0.3, 0.3, 0.1, 0.3]])
def test_the_numbers_of_rows_that_a_model_may_get_are_known(batch, micro, shares):
    recipe, _, ta, *_ = tools(shares=shares, micro_batch=micro)
    rows = Rows(recipe.distill, ta)
    seen = {name: set() for [name] in rows.groups}
    for step in range(500):
        for piece in rows.pieces(range(batch), step):
            seen[piece.groups[0][0]].add(len(piece.rows))
    assert rows.sizes(batch) == seen


@pytest.mark.parametrize("batch", [8, 32])
def test_several_devices_divide_a_batch_as_one_does(batch):
    recipe, _, ta, *_ = tools()
    rows = Rows(recipe.distill, ta)

    def of(numbers):
        pieces = rows.pieces(numbers, 3)
        return {(row, piece.groups[0][0]) for piece in pieces for row in piece.rows}

    half = batch // 2
    assert of(range(half)) | of(range(half, batch)) == of(range(batch))


@pytest.mark.parametrize(
    ("precision", "dtype", "bound"), [("bf16", torch.bfloat16, 0.05), ("fp16", torch.float16, 0.01)]
)
def test_half_precision_is_near_and_does_run_in_it(precision, dtype, bound):
    expected, _, _ = gradients()
    found, _, (step, _) = gradients(precision=precision, logits="chunked")
    assert step.scaler.is_enabled() == (precision == "fp16")
    scale = step.scaler.get_scale()
    for name, value in expected.items():
        gap = (found[name] / scale - value).norm() / value.norm()
        assert 1e-5 < gap < bound, (name, gap)  # not zero: it was not float32 after all


def test_activation_checkpointing_runs_blocks_twice(monkeypatch):
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

    calls = []
    own = GPT2MLP.forward
    monkeypatch.setattr(
        GPT2MLP, "forward", lambda self, *a, **k: (calls.append(1), own(self, *a, **k))[1]
    )
    gradients()
    once = len(calls)
    calls.clear()
    gradients(checkpoint_activations=True)
    trained = 4 * 2  # the TA and three Students, two blocks each
    assert len(calls) == once + trained


def test_whom_the_students_learn_from():
    _, both, _ = gradients()
    _, ta, _ = gradients(students_learn_from="ta")
    _, teacher, _ = gradients(ta_student_weight=0.0)
    terms = lambda found, model: {name for m, name in found if m == model}  # noqa: E731
    assert terms(both, "0.5") == {"truth", "teacher", "ta", "loss"} and terms(both, "TA") == {
        "truth",
        "teacher",
        "loss",
    }
    assert terms(ta, "0.5") == {"truth", "ta", "loss"} and "teacher" in terms(ta, "TA")
    assert terms(teacher, "0.5") == {"truth", "teacher", "loss"}


def test_unshared_students_leave_the_ta_alone():
    alone, _, (_, ta) = gradients(shared=False, ta_student_weight=0.0)
    # the TA's own loss, all by itself
    expected, _, _ = gradients(rows="divided", widths=[2.0], ta_student_weight=0.0)
    same(alone, expected)
    assert all(p.grad is not None for model in ta.copies.values() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_models_products_in_half_the_bits_are_the_same(tied):
    """The weights that autocast would cast at each call are cast once."""
    model = gpt2(24, seed=3)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ids = torch.arange(16)[None] * 3

    def outputs():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(ids).logits

    expected, before = outputs(), sum(p.numel() * p.element_size() for p in model.parameters())
    halve(model, torch.bfloat16)
    assert torch.equal(outputs(), expected)
    after = sum(p.numel() * p.element_size() for p in model.parameters())
    assert model.lm_head.weight.dtype == (torch.float32 if tied else torch.bfloat16)
    assert model.transformer.wte.weight.dtype == torch.float32 and after < 0.75 * before
    assert model.transformer.ln_f.weight.dtype == torch.float32


def test_a_model_that_scales_its_logits_is_not_cut_at_the_head():
    recipe, task, ta, teacher, batch = tools(logits="chunked")

    class Capped(GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = torch.tanh(out.logits)
            return out

    capped = Capped(teacher.config)
    capped.load_state_dict(teacher.state_dict())
    own = ModelTeacher(task, capped.eval())
    with torch.no_grad():
        assert not own.split_head(batch)
        torch.testing.assert_close(
            own(batch, []).whole(), torch.tanh(teacher(batch["input_ids"]).logits)
        )
    ta.model.forward = lambda *a, **k: Capped.forward(ta.model, *a, **k)
    ta.model.__class__ = Capped
    del ta.model.forward
    with pytest.raises(MattaError, match="not those of one last linear layer"):
        made(recipe, task, ta, own, batch)


def test_slices_without_a_part_in_a_step_stay_as_they_are():
    """With ta_weight 0 and one row, which a narrow Student gets, decay and momentum must not move
    the rest.
    """
    recipe, task, ta, teacher, batch = tools(ta_weight=0.0, widths=[0.25, 1.0], weight_decay=0.5)
    step = made(recipe, task, ta, teacher, batch)
    optimizer = make_optimizer(recipe.distill, ta.model, [], torch.device("cpu"))
    steps = range(1, 40)
    narrow = next(n for n in steps if step.rows.models(1, n) == {"0.25"})
    wide = next(n for n in steps if step.rows.models(1, n) == {"1"})

    def take(number):
        [piece] = step.rows.pieces([0], number)
        step({"input_ids": batch["input_ids"][:1]}, piece, number)
        [width] = step.rows.models(1, number)
        with untouched(ta, ta.sizes(float(width)), optimizer):
            optimizer.step()
        optimizer.zero_grad()

    weight = ta.model.transformer.h[0].mlp.c_fc.weight  # [16, 128]: base 64, a quarter of it 16
    take(wide)
    before, moment = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    take(narrow)
    after = optimizer.state[weight]["exp_avg"]
    assert torch.equal(weight[:, 16:], before[:, 16:]) and torch.equal(
        after[:, 16:], moment[:, 16:]
    )
    assert not torch.equal(weight[:, :16], before[:, :16]) and not torch.equal(
        after[:, :16], moment[:, :16]
    )


RATE, DECAY = 0.1, 0.5


def soap(weight, gradients, masks):
    """SOAP (arXiv 2409.11321, algorithm 3) of one matrix, whose rows move where the mask says so.

    Its statistics are those of all gradients, which are zero where a step had no part.
    """
    beta, (rows, columns) = 0.95, weight.shape
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    sides = [weight.new_zeros(rows, rows), weight.new_zeros(columns, columns)]
    bases: list = []
    for step, (gradient, mask) in enumerate(zip(gradients, masks, strict=True)):
        if step:
            into = bases[0].T @ gradient @ bases[1]
            first = beta * first + (1 - beta) * gradient
            second = beta * second + (1 - beta) * into**2
            moved = (bases[0].T @ first @ bases[1]) / (second.sqrt() + 1e-8)
            unbiased = math.sqrt(1 - beta**step) / (1 - beta**step)
            moved = weight - RATE * unbiased * bases[0] @ moved @ bases[1].T
            weight = torch.where(mask, moved * (1 - RATE * DECAY), weight)
        own = (gradient @ gradient.T, gradient.T @ gradient)
        sides = [beta * side + (1 - beta) * new for side, new in zip(sides, own, strict=True)]
        bases = bases or [torch.linalg.eigh(side)[1].flip(1) for side in sides]
        if step and step % 10 == 0:  # one round of power iteration
            for at, side in enumerate(sides):
                order = (bases[at] * (side @ bases[at])).sum(0).argsort(descending=True)
                second = second.index_select(at, order)
                bases[at] = torch.linalg.qr(side @ bases[at][:, order])[0]
    return weight


def shampoo(weight, gradients, masks):
    """Shampoo (arXiv 1802.09568) of one matrix, grafted to RMSProp (2002.11803), likewise.

    Moments are of rows, and stay as they are where a step has no part in them.
    """
    rows, columns = weight.shape
    sides = [1e-6 * torch.eye(n, dtype=weight.dtype) for n in (rows, columns)]
    roots = [torch.eye(n, dtype=weight.dtype) for n in (rows, columns)]
    squares, grafted, momentum = (torch.zeros_like(weight) for _ in range(3))
    for step, (gradient, mask) in enumerate(zip(gradients, masks, strict=True), 1):
        stay = lambda new, old, mask=mask: torch.where(mask, new, old)  # noqa: E731
        squares = stay(0.999 * squares + 0.001 * gradient**2, squares)
        own = (gradient @ gradient.T, gradient.T @ gradient)
        sides = [0.999 * side + 0.001 * new for side, new in zip(sides, own, strict=True)]
        if step % 10 == 0:
            for at, side in enumerate(sides):
                values, vectors = torch.linalg.eigh(side)
                values = values.clamp(min=0) + 1e-6 * values.max()
                roots[at] = vectors @ torch.diag(values**-0.25) @ vectors.T
        plain = RATE * gradient / (squares.sqrt() + 1e-10)
        shaped = roots[0] @ gradient @ roots[1]
        shaped = shaped * plain.norm() / shaped.norm()
        grafted = stay(0.9 * grafted + 0.1 * plain, grafted)
        momentum = stay(0.9 * momentum + 0.1 * shaped, momentum)
        now, new = (momentum, shaped) if step >= 10 else (grafted, plain)
        weight = stay(weight * (1 - RATE * DECAY) - (0.9 * now + 0.1 * new), weight)
    return weight


# the packages' eigenbases are float32, and their roots come from Newton's iteration
@pytest.mark.parametrize(("reference", "bound"), [(soap, 1e-6), (shampoo, 3e-3)])
def test_a_narrow_step_of_an_optimizer_that_mixes_units(reference, bound):
    """Against the papers' own steps in float64, with a half or the whole of a layer's units."""
    torch.manual_seed(0)
    recipe = Recipe()
    values = {"optimizer": reference.__name__, "lr": RATE, "weight_decay": DECAY}
    recipe.update({"distill": values}, "test")
    layer = torch.nn.Linear(16, 20, bias=False, dtype=torch.float64)
    axes = [Axis("mlp", 20, (Slice("weight", 0),))]
    ta = TA(plugins.adapter("gpt2"), layer, axes, {"mlp": 20}, {"multiple": 1})
    optimizer = make_optimizer(recipe.distill, layer, [], torch.device("cpu"))
    widths = [1.0, 0.5, 1.0, 1.0, *[0.5] * 9, 1.0, 0.5, 0.5, 1.0, 1.0, 0.5, *[1.0] * 6]
    masks = [torch.arange(20)[:, None] < 20 * width for width in widths]
    mix = torch.eye(20, dtype=torch.float64) + 0.3 * normal(0, 20, 20)
    gradients = [mask * (mix @ normal(1 + n, 20, 16)) for n, mask in enumerate(masks)]
    start = layer.weight.detach().clone()
    for width, gradient in zip(widths, gradients, strict=True):
        before = layer.weight.detach().clone()
        layer.weight.grad = gradient.clone()
        with untouched(ta, ta.sizes(width), optimizer):
            optimizer.step()
        assert torch.equal(layer.weight[int(20 * width) :], before[int(20 * width) :])
    expected = reference(start, gradients, masks)
    assert (layer.weight - expected).abs().max() < bound < (expected - start).abs().max() / 100


@pytest.mark.parametrize("name", choices("distill.optimizer"))
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(name):
    """Its state, through paths and numbers, in a fresh optimizer: the next steps are the same to
    the bit.
    """
    recipe, _, ta, _, batch = tools(optimizer=name, lr=1e-3)

    def run(optimizer, model, steps):
        for _ in range(steps):
            model(batch["input_ids"], labels=batch["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    device = torch.device("cpu")
    start = copy.deepcopy(ta.model)
    optimizer = make_optimizer(recipe.distill, ta.model, [], device)
    run(optimizer, ta.model, 13)
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(ta.model.parameters(), start.parameters(), strict=True)
    ]
    assert min(moved) > 0 and all(map(math.isfinite, moved))
    tensors, numbers = state_of(optimizer)
    stopped = copy.deepcopy(ta.model)
    run(optimizer, ta.model, 12)
    again = make_optimizer(recipe.distill, stopped, [], device)
    restore(again, {k: v.clone() for k, v in tensors.items()}, numbers)
    run(again, stopped, 12)
    assert all(
        torch.equal(a, b) for a, b in zip(ta.model.parameters(), stopped.parameters(), strict=True)
    )
    path = next(path for path in numbers if path.endswith("/lr"))
    for wrong in ([[]], "x", None, True):  # of a damaged file
        with pytest.raises(RuntimeError, match=f"{path} is"):
            fresh = make_optimizer(recipe.distill, stopped, [], device)
            restore(fresh, tensors, {**numbers, path: wrong})


def test_vectors_are_not_decayed():
    recipe, _, ta, _, _ = tools(weight_decay=0.1)
    for name in ("adamw", "muon"):
        recipe.distill.optimizer = name
        optimizer = make_optimizer(recipe.distill, ta.model, [], torch.device("cpu"))
        decayed = {
            id(p)
            for group in optimizer.param_groups
            if group["weight_decay"] == 0.1
            for p in group["params"]
        }
        assert decayed == {id(p) for p in ta.model.parameters() if p.dim() > 1}
        assert all(group["weight_decay"] in (0, 0.1) for group in optimizer.param_groups)
