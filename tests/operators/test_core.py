"""The torch-free core from NumPy, on every instruction set that is built and that can run."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from kanerva_ext import _core as core

LEVELS = ("baseline", "avx2", "avx512")


def belief(rng, batch, slots, code, dtype=np.float64):
    root = rng.standard_normal((batch, slots, slots + 3)) / np.sqrt(slots)
    cov = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(slots)
    return rng.standard_normal((batch, slots, code)).astype(dtype), cov.astype(dtype)


def write(mean, cov, weights, values, noise_var):
    """The recursion, for one batch item."""
    log_evidence = 0.0
    for w, z, v in zip(weights, values, noise_var, strict=True):
        c = cov @ w
        s, d = w @ c + v, z - mean.T @ w
        mean, cov = mean + np.outer(c, d) / s, cov - np.outer(c, c) / s
        log_evidence -= (d @ d / s + len(z) * np.log(2 * np.pi * s)) / 2
    return mean, cov, log_evidence


def worst_errors(dtype=np.float64):
    """Largest relative error of every function against plain NumPy."""
    rng = np.random.default_rng(0)
    batch, steps, slots, code, ridge = 3, 41, 21, 19, 0.3
    mean, cov = belief(rng, batch, slots, code, dtype)
    prior_mean, prior_cov = belief(rng, batch, slots, code, dtype)
    weights = rng.standard_normal((batch, steps, slots)).astype(dtype)
    values = rng.standard_normal((batch, steps, code)).astype(dtype)
    noise_var = (0.5 + rng.random((batch, steps))).astype(dtype)
    wide = [x.astype(np.float64) for x in (mean, cov, weights, values, noise_var)]

    def error(actual, expected):
        expected = np.asarray(expected)
        return float(np.abs(actual - expected).max() / np.abs(expected).max())

    errors = {}
    expected = [
        np.stack(x) for x in zip(*(write(*item) for item in zip(*wide, strict=True)), strict=True)
    ]
    for method in ("auto", "chunk", "information", "sqrt"):
        actual = core.bayes_write(mean, cov, weights, values, noise_var, method=method)
        errors[f"bayes_write {method}"] = max(map(error, actual, expected))
    decay = (0.9 + 0.1 * rng.random((batch, steps))).astype(dtype)
    mask = rng.random((batch, steps)) < 0.7
    actual = core.causal_scan(
        mean, cov, weights, values, weights[:, ::-1], noise_var, mask=mask, decay=decay
    )
    errors["causal_scan"] = max(map(error, actual, scan(wide, decay, mask)))
    for name, stationary_cov in (("identity", None), ("matrix", prior_cov)):
        moved = moving_scan(wide, decay, stationary_cov)
        options = {"retention": decay, "stationary_cov": stationary_cov}
        actual = core.causal_scan(
            mean, cov, weights, values, weights[:, ::-1], noise_var, **options
        )
        errors[f"causal_scan moving, {name}"] = max(map(error, actual, moved))
        for method in ("auto", "sqrt"):
            actual = core.bayes_write(
                mean, cov, weights, values, noise_var, **options, method=method
            )
            errors[f"bayes_write moving, {name}, {method}"] = max(map(error, actual, moved[2:]))
    m, c, w, z, _ = wide
    mt = m.transpose(0, 2, 1)
    system = m @ mt + ridge * np.eye(slots)
    solved = np.linalg.solve(system, m @ z.transpose(0, 2, 1)).transpose(0, 2, 1)
    ridges = np.full(batch, ridge, dtype)
    errors["solve_addresses"] = error(core.solve_addresses(mean, values, ridges), solved)
    read = (w @ m, np.einsum("btk,bkl,btl->bt", w, c, w))
    errors["read"] = max(map(error, core.read(mean, cov, weights), read))
    recalled = (solved @ m, np.einsum("btk,bkl,btl->bt", solved, c, solved), solved)
    errors["recall"] = max(map(error, core.recall(mean, cov, values, ridges), recalled))
    pm, pc = prior_mean.astype(np.float64), prior_cov.astype(np.float64)
    difference, inverse = m - pm, np.linalg.inv(pc)
    kl = code * np.einsum("bij,bji->b", inverse, c) - slots * code
    kl += np.einsum("bkc,bkl,blc->b", difference, inverse, difference)
    kl -= code * (np.linalg.slogdet(c)[1] - np.linalg.slogdet(pc)[1])
    errors["memory_kl"] = error(core.memory_kl(mean, cov, prior_mean, prior_cov), kl / 2)
    precision = np.linalg.inv(c)
    errors["statistics"] = max(map(error, core.statistics(mean, cov), (precision @ m, precision)))
    errors["adaptive_write"], addresses = adaptive_error(
        wide, ridge, core.adaptive_write(mean, cov, values, noise_var, ridges)
    )
    written = write_each(m, c, addresses, z, wide[4])
    rest = core.forget(
        *(x.astype(dtype) for x in written), addresses.astype(dtype), values, noise_var
    )
    errors["forget"] = max(map(error, rest, (m, c)))
    return errors


def errors_of_samples(dtype):
    """The same against the reference, of every operator, on the arguments of its own tests."""
    import torch
    from samples import NAMES, sample

    from kanerva_ext import reference

    torch.manual_seed(0)
    errors = {}
    for name in NAMES:
        own = sample(name)
        args = own.raw_args(own.arguments((3,), 41, 21, 19, getattr(torch, dtype), optional=False))
        wide = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
        names = [argument.name for argument in own.raw_operator()._schema.arguments]
        given = {
            n: a.numpy() if isinstance(a, torch.Tensor) else a
            for n, a in zip(names, args, strict=True)
            if a is not None
        }
        got, want = getattr(core, name)(**given), getattr(reference, name)(*wide)
        pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
        errors[name] = max(
            float(np.abs(x - y.numpy()).max() / np.abs(y.numpy()).max()) for x, y in pairs
        )
    return errors


def scan(problem, decays, masks):
    """A read at the addresses, last first, after every step that counts: reads, variances, state
    and evidence."""
    results = []
    for mean, cov, weights, values, noise_var, decay, mask in zip(
        *problem, decays.astype(np.float64), masks, strict=True
    ):
        reads, variances, evidence = [], [], 0.0
        for t, q in enumerate(weights[::-1]):
            if mask[t]:
                step = slice(t, t + 1)
                mean, cov, more = write(
                    mean, cov / decay[t], weights[step], values[step], noise_var[step]
                )
                evidence += more
            reads.append(q @ mean)
            variances.append(q @ cov @ q)
        results.append((np.array(reads), np.array(variances), mean, cov, evidence))
    return [np.stack(x) for x in zip(*results, strict=True)]


def moving_scan(problem, retentions, stationary_covs):
    """The same of a memory that moves, without a mask."""
    results = []
    for i, (mean, cov, weights, values, noise_var) in enumerate(zip(*problem, strict=True)):
        sigma = np.eye(len(cov)) if stationary_covs is None else stationary_covs[i].astype(float)
        reads, variances, evidence = [], [], 0.0
        for t, a in enumerate(retentions[i].astype(float)):
            mean, cov = a * mean, a * a * cov + (1 - a * a) * sigma
            step = slice(t, t + 1)
            mean, cov, more = write(mean, cov, weights[step], values[step], noise_var[step])
            evidence += more
            q = weights[-1 - t]
            reads.append(q @ mean)
            variances.append(q @ cov @ q)
        results.append((np.array(reads), np.array(variances), mean, cov, evidence))
    return [np.stack(x) for x in zip(*results, strict=True)]


def write_each(*batches):
    return [np.stack(x) for x in list(zip(*map(write, *batches), strict=True))[:2]]


def adaptive_error(problem, ridge, results):
    """Of an adaptive write whose addresses are solved step by step here; and these addresses."""
    means, covs, _, values, noise_vars = problem
    worst, addresses = 0.0, []
    for i, (mean, cov) in enumerate(zip(means, covs, strict=True)):
        found = []
        for z, v in zip(values[i], noise_vars[i], strict=True):
            w = np.linalg.solve(mean @ mean.T + ridge * np.eye(len(mean)), mean @ z)
            mean, cov, _ = write(mean, cov, w[None], z[None], v[None])
            found.append(w)
        addresses.append(found)
        for got, want in zip((x[i] for x in results), (mean, cov, np.array(found)), strict=False):
            worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))
    return worst, np.array(addresses)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_every_instruction_set(level, dtype):
    best = core.simd_level()
    if LEVELS.index(level) > LEVELS.index(best):
        pytest.skip(f"this build or processor has no {level}")
    folder = os.path.dirname(__file__)
    code = (
        f"import sys, json; sys.path[:0] = {[folder, os.path.dirname(folder)]!r}\n"
        f"import numpy as np, test_core as t; print(t.core.simd_level())\n"
        f"print(json.dumps(t.worst_errors(np.{dtype})))\n"
        f"print(json.dumps(t.errors_of_samples({dtype!r})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KANERVA_SIMD": level},
        cwd=tempfile.gettempdir(),  # -c would look for the package in the checkout first
        capture_output=True,
        text=True,
        check=True,
    )
    used, *errors = run.stdout.splitlines()
    assert used == level
    limit = 1e-12 if dtype == "float64" else 1e-5
    for found in map(json.loads, errors):
        assert {k: e for k, e in found.items() if not e <= limit} == {}


def test_strided_arrays_and_masks():
    rng = np.random.default_rng(1)
    mean, cov = belief(rng, 2, 5, 4)
    weights, values = rng.standard_normal((2, 12, 5)), rng.standard_normal((2, 12, 4))
    noise_var = np.ones((2, 12))
    mask = np.arange(12) % 2 == 0
    half = core.bayes_write(mean, cov, weights[:, ::2], values[:, ::2], noise_var[:, ::2])
    masked = core.bayes_write(
        mean, cov, weights, values, noise_var, mask=np.broadcast_to(mask, (2, 12))
    )
    transposed = np.ascontiguousarray(values[:, ::2].transpose(0, 2, 1)).transpose(0, 2, 1)
    strided = core.bayes_write(mean, cov, weights[:, ::2], transposed, noise_var[:, ::2])
    for a, b, c in zip(half, masked, strided, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": np.zeros((2, 5, 4), np.int64)}, TypeError, "mean must be a float32 or float64"),
        ({"cov": np.eye(5)}, ValueError, r"cov must have shape \(2, 5, 5\), got \(5, 5\)"),
        ({"weights": np.zeros((2, 3))}, ValueError, "weights must have three dimensions"),
        ({"values": np.zeros((2, 3, 9))}, ValueError, r"values must have shape \(2, 3, 4\)"),
        ({"noise_var": np.ones(3)}, ValueError, r"noise_var must have shape \(2, 3\)"),
        ({"mask": np.ones((2, 4), bool)}, ValueError, r"mask must have shape \(2, 3\)"),
        (
            {"method": "fast"},
            ValueError,
            "method must be auto, chunk, information or sqrt, got fast",
        ),
        ({"method": "information", "decay": np.ones((2, 3))}, ValueError, "does not take decay"),
        (
            {"method": "information", "retention": np.ones((2, 3))},
            ValueError,
            "does not take retention",
        ),
        ({"retention": np.ones(3)}, ValueError, r"retention must have shape \(2, 3\)"),
        (
            {"decay": np.ones((2, 3)), "retention": np.ones((2, 3))},
            ValueError,
            "decay and retention exclude each other",
        ),
        ({"stationary_cov": np.ones((2, 5, 5))}, ValueError, "stationary_cov needs a retention"),
    ],
)
def test_bad_input(change, error, message):
    args = {
        "mean": np.zeros((2, 5, 4)),
        "cov": np.tile(np.eye(5), (2, 1, 1)),
        "weights": np.ones((2, 3, 5)),
        "values": np.ones((2, 3, 4)),
        "noise_var": np.ones((2, 3)),
    }
    core.bayes_write(**args)
    with pytest.raises(error, match=message):
        core.bayes_write(**{**args, **change})


def test_build_info():
    info = core.build_info()
    assert info["isas"][0] == "baseline" and core.simd_level() in info["isas"]
