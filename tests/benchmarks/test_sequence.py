"""The comparison of sequence layers: equal sizes, causal, each rival what it is called, and the
exact posterior that of the filter."""

import json

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from benchmarks.sequence import __main__ as command
from benchmarks.sequence import mixers, page, results, training
from benchmarks.sequence.tasks import SCORES, TASKS
from kanerva_ext import ops

pytestmark = pytest.mark.usefixtures("one_thread")
RIVALS = ("attention", "delta", "diagonal", "mesa")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def heads(steps=21, size=5):
    """queries, keys, values, noise, rate of a sequence longer than a chunk, forgetting a lot."""
    queries, keys = (
        torch.nn.functional.normalize(drawn(2, 3, steps, size, seed=s), dim=-1) for s in (1, 2)
    )
    gates = (drawn(2, 3, steps, seed=s).exp() for s in (3, 4))
    return queries, keys, drawn(2, 3, steps, size, seed=5), *gates


# ------------------------------------------------------------------------------------- rivals


@pytest.mark.parametrize("mixer", mixers.MIXERS)
def test_mixers_are_causal_and_keep_the_shape(mixer):
    torch.manual_seed(0)
    layer, x = mixers.make(mixer, 16, 2).double(), drawn(2, 21, 16)
    changed = x.clone()
    changed[:, 9] += 1
    a, b = layer(x).hidden_states, layer(changed).hidden_states
    assert a.shape == x.shape
    torch.testing.assert_close(a[:, :9], b[:, :9], rtol=0, atol=1e-13)
    assert (a[:, 9:] != b[:, 9:]).any(-1).all()


@pytest.mark.parametrize("task", TASKS)
def test_models_have_equally_many_parameters(task):
    counts = [
        sum(p.numel() for p in training.Model(TASKS[task], mixer).parameters())
        for mixer in mixers.MIXERS
    ]
    # MesaNet's ridge, one number per head and slot, is all that differs.
    assert max(counts) - min(counts) <= training.LAYERS * training.WIDTH
    assert max(counts) < 1.005 * min(counts)


def test_every_mixer_begins_to_forget_alike():
    rates = torch.logspace(-3, -1, 4)
    for mixer in mixers.MIXERS:
        layer = mixers.make(mixer, 16, 4)
        for name, gate in layer.named_modules():
            if name in ("retention_proj", "decay_proj"):
                got = torch.nn.functional.softplus(gate.bias)
                torch.testing.assert_close(got, rates, rtol=1e-4, atol=0)


def stepwise(name, queries, keys, values, noise, rate):
    """What each rival is, one token after the other."""
    kept, reads = torch.exp(-rate), []
    memory = torch.zeros(*keys.shape[:2], keys.shape[-1], values.shape[-1], dtype=keys.dtype)
    precision, second = torch.ones_like(keys[:, :, 0]), torch.zeros_like(memory)
    for t in range(keys.shape[2]):
        k, v, q = keys[:, :, t], values[:, :, t], queries[:, :, t]
        a, n = kept[:, :, t, None], noise[:, :, t, None]
        pair = k[..., :, None] * v[..., None, :]
        if name == "delta":
            memory = a[..., None] * memory
            error = v - (k[..., None, :] @ memory)[..., 0, :]
            learning = 2 / (1 + n / mixers.NOISE)
            memory = memory + (learning * k)[..., :, None] * error[..., None, :]
            read = q[..., None, :] @ memory
        elif name == "diagonal":
            precision = 1 / (a.square() / precision + 1 - a.square())
            mean = a[..., None] * memory  # of the belief
            before = precision[..., None] * mean + pair / n[..., None]
            precision = precision + k.square() / n
            memory = before / precision[..., None]
            read = q[..., None, :] @ memory
        else:
            second = a[..., None] * second + k[..., :, None] * k[..., None, :] / n[..., None]
            memory = a[..., None] * memory + pair / n[..., None]
            system = second + torch.eye(k.shape[-1], dtype=k.dtype)
            read = torch.linalg.solve(system, q[..., None]).mT @ memory
        reads.append(read)
    return torch.cat(reads, 2)


@pytest.mark.parametrize("name", ["delta", "diagonal", "mesa"])
def test_a_rival_is_its_recursion(name):
    layer = mixers.make(name, 15, 3).double()
    torch.testing.assert_close(layer.mix(*heads()), stepwise(name, *heads()))


def test_attention_weighs_what_was_before():
    queries, keys, values, noise, rate = heads(4)
    got = mixers.make("attention", 15, 3).double().mix(queries, keys, values, noise, rate)
    scores = (keys[:, :, :3] @ queries[:, :, 2, :, None])[..., 0] * 5**0.5 / noise[:, :, 2, None]
    gone = torch.stack([rate[:, :, 1:3].sum(-1), rate[:, :, 2], 0 * rate[:, :, 2]], -1)
    want = ((scores - gone).softmax(-1)[..., None] * values[:, :, :3]).sum(2)
    torch.testing.assert_close(got[:, :, 2], want)


def test_the_gradient_of_conjugate_gradients():
    queries, keys, _, noise, rate = heads(6, 4)
    weights = mixers._log_kept(rate).exp() / noise[:, :, None]
    given = [queries, keys, weights, torch.full((3, 1, 4), 0.7, dtype=torch.float64)]
    given = [x.requires_grad_() for x in given]

    def solved(queries, keys, weights, ridge):
        return mixers._Solve.apply(queries, keys, weights.tril(), ridge)

    assert torch.autograd.gradcheck(solved, given)


def test_the_gradient_of_the_diagonal_variances():
    squares, added = drawn(2, 1, 5, 1).sigmoid().requires_grad_(), drawn(2, 1, 5, 3, seed=1).exp()
    assert torch.autograd.gradcheck(mixers._Variances.apply, [squares, added.requires_grad_()])


# -------------------------------------------------------------------------------------- tasks


def test_the_filter_is_the_exact_posterior_of_drifting_weights():
    """The joint normal distribution of all y, which knows of no filter, against `causal_scan`."""
    task = TASKS["regression"]
    batch = task.batch(8, generator())
    x, y = (part.double() for part in batch[1:])
    reads, *_ = ops.causal_scan(
        *(None, None, x, y[..., None], x.roll(-1, 1), task.noise_var),
        retention=task.retention,
    )
    predicted = task.retention * reads[:, :-1, 0]
    error = torch.cat([y[:, :1], y[:, 1:] - predicted], 1).square()
    torch.testing.assert_close(error, task.exact_error(batch), rtol=1e-9, atol=1e-12)


def test_no_predictor_beats_the_exact_posterior():
    task = TASKS["regression"]
    batch = task.batch(2000, generator())
    exact = task.exact_error(batch).mean(0)
    assert exact[0] == pytest.approx(1 + task.noise_var, rel=0.1)
    assert exact[-8:].mean() < 0.6 * exact[0] and (exact[12:] > task.noise_var).all()
    y = batch[2]
    assert ((y - 0.9 * y.roll(1, 1)).square().mean(0)[1:] > exact[1:]).all()


def test_tokens_of_the_regression_show_the_last_pair_only():
    tokens, x, y = TASKS["regression"].batch(2, generator())
    inputs = x.shape[-1]
    assert torch.equal(tokens[..., :inputs], x)
    assert torch.equal(tokens[:, 1:, inputs : 2 * inputs], x[:, :-1])
    assert torch.equal(tokens[:, 1:, 2 * inputs], y[:, :-1])
    assert (tokens[:, 0, inputs:] == 0).all() and (tokens[:, 1:, -1] == 1).all()


def test_recall_asks_for_what_was_written():
    task = TASKS["recall"]
    tokens, answers = task.batch(3, generator(), 7)
    for row, wanted in zip(tokens.tolist(), answers.tolist(), strict=True):
        pairs = dict(zip(row[:14:2], row[1:14:2], strict=True))
        assert len(pairs) == 7
        assert [pairs[each] - task.symbols for each in row[14:]] == wanted


def test_permutations_are_composed():
    task = TASKS["permutations"]
    tokens, states = task.batch(4, generator(), 9)
    for row, after in zip(tokens.tolist(), states.tolist(), strict=True):
        state = list(range(task.objects))
        for swap, want in zip(row, after, strict=True):
            i, j = task.swaps[swap]
            state[i], state[j] = state[j], state[i]
            assert state == want


def test_copies_are_in_order():
    task = TASKS["copying"]
    tokens, answers = task.batch(4, generator())
    for row, wanted in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert row[0] == row[task.length + 1] == task.symbols
        assert [each for each in row[1 : task.length + 1] if each < task.symbols] == wanted
        assert row[task.length + 2 :] == wanted[:-1] and len(set(wanted)) == task.copied


def test_held_out_characters_are_not_trained_on():
    task = type(TASKS["characters"])()
    assert len(task.text) > 300_000 and 0 <= int(task.text.min()) <= int(task.text.max()) < 97
    task.text = torch.arange(5_000)
    assert task.batch(2_000, generator()).max() < 4_500
    held_out = task.batch(500, generator(), True)
    assert held_out.min() >= 4_500 and (held_out.diff(dim=1) == 1).all()


# ------------------------------------------------------------------------------- runs and page


@pytest.mark.parametrize("task", TASKS)
def test_a_run_is_the_same_again(task):
    first, again = (training.train(task, "attention", 1, 2) for _ in range(2))
    assert first["held_out"] == again["held_out"] and first["curve"] == again["curve"]
    assert str(SCORES[task]) in first["held_out"]
    other = training.train(task, "attention", 2, 2)
    assert other["curve"] != first["curve"]


def test_all_makes_what_is_missing(tmp_path, capsys):
    path = tmp_path / "sequence.json"
    words = ["all", "--seeds", "1", "--steps", "2", "--tasks", "permutations"]
    words += ["--results", str(path), "--models"]
    assert command.main([*words, "attention"]) == 0
    assert command.main([*words, "attention", "delta"]) == 0
    assert capsys.readouterr().out.count("permutations") == 2
    runs = json.loads(path.read_text())["runs"]
    assert set(runs) == {f"permutations/{model}, steps=2/0" for model in ("attention", "delta")}
    assert command.main([*words, "attention", "--minutes", "-1"]) == 0
    assert command.main([*words, "diagonal", "--minutes", "-1"]) == 0
    assert "minutes are over" in capsys.readouterr().out


@pytest.mark.parametrize("model", mixers.MIXERS)
def test_a_norm_that_keeps_sizes(model, tmp_path):
    """Without it, reads of twice the size are the same to what follows."""
    path, words = tmp_path / "sequence.json", ["regression", "--model", model, "--steps", "2"]
    for more in ([], ["--norm-eps", "1"]):
        assert command.main([*words, *more, "--results", str(path)]) == 0
    runs = results.read(path)["runs"]
    ways = ("steps=2", "norm_eps=1, steps=2")
    assert set(runs) == {f"regression/{model}, {way}/0" for way in ways}
    a, b = (run["held_out"]["ratio"] for run in runs.values())
    assert a != b


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recall"], "needs --model"),
        (["recall", "--model", "delta", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["recall", "--model", "delta", "--norm-eps", "0"], "--norm-eps must be above 0, got 0"),
        (["nothing"], "invalid choice"),
    ],
)
def test_wrong_words_are_named(words, message, capsys):
    with pytest.raises(SystemExit):
        command.main(words)
    assert message in capsys.readouterr().err


def test_the_page_is_what_the_results_say():
    """Tables are those of the file that is committed."""
    text = page.PAGE.read_text("utf-8")
    assert page.with_tables(text, results.read(results.RESULTS)) == text


def test_tables_and_pictures(tmp_path, monkeypatch):
    path = tmp_path / "sequence.json"
    for seed, place in ((0, "0.25"), (1, "0.75")):
        run = training.train("permutations", "delta", seed, 2)
        run["held_out"]["mean to 16"] = float(place)
        results.store(path, results.key("permutations", "delta", seed), run)
    results.store(path, "regression/mesa/0", training.train("regression", "mesa", 0, 2))
    free = training.train("regression", "mesa", 0, 2)
    for steps, ratio in ((None, 8.5), (8000, 7.5)):
        free["held_out"]["ratio"] = ratio
        results.store(path, results.key("regression", "mesa", 0, norm_eps=1.0, steps=steps), free)
    results.store(path, "characters/mesa/0", training.train("characters", "mesa", 0, 2))
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "IMAGES", tmp_path / "images")
    page.PAGE.write_text("a\n<!-- scores -->\nold\n<!-- /scores -->\n")
    with pytest.raises(ValueError, match="no markers of longer"):
        page.write_page(results.read(path))
    rest = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("longer", "costs"))
    page.PAGE.write_text(page.PAGE.read_text() + rest + "z\n")
    written = page.write_page(results.read(path))
    text = page.PAGE.read_text()
    assert "0.500 (0.250 to 0.750, 2 seeds)" in text and "(1 seed)" in text and "not run" in text
    assert "| 8.500 (1 seed) | - | 7.500 (1 seed) |" in text
    assert text.startswith("a\n") and text.endswith("z\n") and "old" not in text
    assert [each.stat().st_size > 10_000 for each in written[1:]] == [True, True]
    assert page.with_tables(text, results.read(path)) == text
