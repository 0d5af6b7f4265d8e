"""Hard problems, their truth in extended precision, and the rule by which results pass."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from selection import INTERPRETER, TEAMS, not_on
from torch import Tensor

KINDS = ("iid", "collinear", "rank8", "scaled", "softmax", "repeated")
METHODS = ("auto", "chunk", "information", "sqrt")
LD = np.longdouble
ULPS = 8
BROKEN = 1e-2  # relative error beyond which the float32 recursion has broken down


class Problem(NamedTuple):
    """The arguments of bayes_write."""

    mean: Tensor
    cov: Tensor
    weights: Tensor
    values: Tensor
    noise_var: Tensor
    mask: Tensor | None = None
    decay: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Problem:
        return Problem(*(_cast(x, dtype) for x in self))

    def item(self, index: int) -> Problem:
        return Problem(*(None if x is None else x[index : index + 1] for x in self))


class Case(NamedTuple):
    """A point of the grid of hard problems."""

    kind: str
    noise: float
    steps: int
    slots: int
    code: int
    mask: str = "none"
    decay: bool = False
    batch: int = 2

    def traits(self) -> tuple:
        """What decides which formula or arithmetic serves the problem."""
        return self.kind, self.noise >= 1, self.steps > 32, self.mask, self.decay

    @property
    def marks(self) -> tuple[pytest.MarkDecorator, ...]:
        """Of a test of this problem. The interpreter pays for steps times tiles."""
        small = self.steps * self.slots <= 1100 and self.steps * self.code <= 10_000
        small = small and self.slots <= 65
        if self.steps > 1000 or self.slots > 250:
            return (not_on(INTERPRETER, TEAMS, reason="too large a problem"),)
        return () if small else (not_on(INTERPRETER, reason="too large a problem"),)

    def __str__(self) -> str:
        extra = f"-mask_{self.mask}" if self.mask != "none" else ""
        extra += "-decay" if self.decay else ""
        return f"{self.kind}-v{self.noise:g}-T{self.steps}-K{self.slots}-C{self.code}{extra}"


def _grid() -> list[Case]:
    """Every kind with every noise; steps, sizes, masks and decay take turns (coprime periods)."""
    steps = (7, 32, 100, 1, 33)
    sizes = ((32, 100), (1, 3), (17, 1), (64, 16), (13, 29), (5, 300), (65, 31))
    masks = ("none", "some", "none", "all")
    grid = [(kind, noise) for kind in KINDS for noise in (1e-6, 1e-4, 1e-2, 1.0, 1e3)]
    cases = [
        Case(kind, noise, steps[i % 5], *sizes[i % 7], masks[i % 4], i % 3 == 2)
        for i, (kind, noise) in enumerate(grid)
    ]
    return [
        *cases,
        Case("iid", 1.0, 0, 4, 3),
        Case("iid", 1.0, 0, 4, 3, decay=True),
        Case("iid", 1.0, 32, 300, 257, batch=1),
        Case("softmax", 1e-4, 100, 127, 65, "some", batch=1),
        *(Case(kind, 1e-2, 1024, 24, 20, batch=1) for kind in KINDS),
        # On the CPU the sums of these are float32, except of the hard ones.
        *(Case(kind, 1.0, 2100, 20, 9, "some", batch=1) for kind in KINDS),
        *(Case(kind, 1e3, 1500, 7, 33, batch=2) for kind in ("collinear", "softmax", "scaled")),
        Case("iid", 1.0, 1024, 33, 5, "some", True, batch=1),
        Case("softmax", 1e-6, 1024, 16, 8, batch=1),
    ]


CASES = _grid()
DTYPES = (torch.float32, torch.float64)
LONG = Case("iid", 1.0, 65_536, 6, 3, batch=1)


def problem(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
    """The problem of a grid point; the same numbers, rounded, in every dtype, on any device."""
    with torch.device("cpu"):
        full = _problem(case, seed)
    device = torch.get_default_device()
    full = Problem(*(x if x is None else x.to(device) for x in full))
    return full.to(torch.float32).to(dtype)  # float32 and float64 solve the same problem


def _problem(case: Case, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    b, t, k, c = case.batch, case.steps, case.slots, case.code

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if case.kind == "iid":
        weights = randn(b, t, k) / math.sqrt(k)
    elif case.kind == "collinear":
        weights = randn(b, 1, k) / math.sqrt(k) + 1e-3 * randn(b, t, k)
    elif case.kind == "rank8":
        weights = randn(b, t, min(8, k)) @ randn(b, min(8, k), k) / k
    elif case.kind == "scaled":
        weights = randn(b, t, k) * torch.logspace(-3, 2, k, dtype=torch.float64)
    elif case.kind == "softmax":
        weights = torch.softmax(4 * randn(b, t, k), -1)
    elif case.kind == "zeros":
        weights = randn(b, t, k) / math.sqrt(k)
        weights = weights * (torch.rand(b, t, 1, generator=generator) < 0.5)
    else:
        distinct = randn(b, 3, k) / math.sqrt(k)
        weights = distinct[:, torch.arange(t) % 3]
    root = randn(b, k, k) / math.sqrt(k)
    mask = None
    if case.mask == "some":
        mask = torch.rand(b, t, generator=generator) < 0.7
    elif case.mask == "all":
        mask = torch.zeros(b, t, dtype=torch.bool)
    decay = 1 - 0.1 * torch.rand(b, t, generator=generator, dtype=torch.float64)
    noise = case.noise * (0.5 + torch.rand(b, t, generator=generator, dtype=torch.float64))
    mean, values = randn(b, k, c), randn(b, t, c)
    if case.kind == "zeros":  # of some tokens everything is 0
        values = values * (weights != 0).any(-1, keepdim=True)
    return Problem(
        mean,
        root @ root.mT / 2 + 0.5 * torch.eye(k, dtype=torch.float64),
        weights,
        values,
        noise,
        mask,
        decay if case.decay else None,
    )


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == torch.bool else tensor.to(dtype)


# ------------------------------------------------------------------- truth in extended precision


def recursion(p: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bayes_write step by step in numpy.longdouble."""
    items = [_recursion_item(p.item(i), None)[0] for i in range(len(p.mean))]
    shapes = (p.mean.shape[1:], p.cov.shape[1:], ())
    return tuple(
        np.stack(x) if items else np.zeros((0, *s), LD)
        for x, s in zip(zip(*items, strict=True) if items else ((),) * 3, shapes, strict=True)
    )


def recursion_grads(p: Problem, grads: tuple[Tensor, Tensor, Tensor]) -> list[np.ndarray]:
    """Gradients of mean, cov (symmetrised), weights, values, noise_var and decay, in longdouble,
    for the incoming gradients of (mean, cov, log_evidence): the recursion run backwards."""
    items = [
        _recursion_item(p.item(i), [extended(g[i]) for g in grads])[1] for i in range(len(p.mean))
    ]
    return [np.stack(x) for x in zip(*items, strict=True)]


def extended(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy().astype(LD)


def _recursion_item(p: Problem, grads: list[np.ndarray] | None):
    mean, cov, weights, values, noise = (extended(x[0]) for x in p[:5])
    decay = np.ones(len(weights), LD) if p.decay is None else extended(p.decay[0])
    counts = np.ones(len(weights), bool) if p.mask is None else p.mask[0].cpu().numpy()
    code, evidence, tape = mean.shape[1], LD(0), []
    pi = LD(math.pi)
    for t in np.flatnonzero(counts):
        cov = cov / decay[t]
        w, c = weights[t], cov @ weights[t]
        s, d = w @ c + noise[t], values[t] - mean.T @ w
        tape.append((t, cov, mean, c, s, d))
        mean, cov = mean + np.outer(c, d) / s, cov - np.outer(c, c) / s
        evidence = evidence - (d @ d / s + code * np.log(2 * pi * s)) / 2
    out = (mean, cov, evidence)
    if grads is None:
        return out, None
    g_mean, g_cov, g_log = grads
    g_cov = (g_cov + g_cov.T) / 2
    g_w, g_z = np.zeros_like(weights), np.zeros_like(values)
    g_v, g_decay = np.zeros_like(noise), np.zeros_like(decay)
    for t, cov, mean, c, s, d in reversed(tape):
        g_mean, g_cov, g_w[t], g_z[t], g_v[t], g_decay[t] = step_back(
            (cov, mean, c, s, d), weights[t], decay[t], g_mean, g_cov, g_log
        )
    return out, [g_mean, g_cov, g_w, g_z, g_v, g_decay]


def step_back(step, w, decay, g_mean, g_cov, g_log):
    """Gradients of the mean and covariance before a step, of its address, value, noise and decay.

    ``step``: the covariance (divided by the decay) and mean before it, U w, w'U w + v, and
    z - R'w."""
    cov, mean, c, s, d = step
    g_d = g_mean.T @ c / s - g_log * d / s
    g_c = g_mean @ d / s - 2 * g_cov @ c / s
    g_s = -(c @ g_mean @ d) / s**2 + c @ g_cov @ c / s**2
    g_s = g_s - g_log / 2 * (len(d) / s - d @ d / s**2)
    g_c = g_c + g_s * w
    g_w = g_s * c + cov @ g_c - mean @ g_d
    g_mean = g_mean - np.outer(w, g_d)
    g_cov = g_cov + (np.outer(g_c, w) + np.outer(w, g_c)) / 2
    g_decay = -(g_cov * cov).sum() / decay
    return g_mean, g_cov / decay, g_w, g_d, g_s, g_decay


# --------------------------------------------------------------------------------- the rule


def relative_error(actual, truth) -> float:
    """Largest error over batch items, each relative to its largest true value; inf for a NaN."""
    actual, truth = _rows(actual), _rows(truth)
    if truth.size == 0:
        return 0.0
    scale = np.abs(truth).max(1, keepdims=True)
    error = np.abs(actual - truth) / np.where(scale == 0, 1, scale)
    return float(np.where(np.isnan(error), np.inf, error).max())


def _rows(x) -> np.ndarray:
    x = extended(x) if isinstance(x, Tensor) else np.asarray(x, LD)
    return x.reshape(len(x), -1) if x.ndim > 1 else x.reshape(-1, 1)


def assert_as_accurate(
    actual,
    truth,
    rival=None,
    *,
    floor: float | None = None,
    broken: float = BROKEN,
    name: str = "result",
) -> None:
    """``actual`` errs at most twice as much as ``rival``, a plain computation in the same dtype,
    plus a few ulp. Where the rival has broken down, ``broken`` is the bound.

    With ``floor``, twice the rival's error or ``floor``, whichever is larger: float64 results are
    held to 1e-10, but where the float64 recursion itself is further from the truth, to that.
    Errors are relative to the largest true value of the batch item.
    """
    assert tuple(actual.shape) == tuple(truth.shape), (
        f"{name} has shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    )
    rival_error = 0.0 if rival is None else relative_error(rival, truth)
    allowed = min(2 * rival_error, broken)
    few_ulp = ULPS * torch.finfo(actual.dtype).eps
    bound = allowed + few_ulp if floor is None else max(allowed, floor)
    error = relative_error(actual, truth)
    if error <= bound:
        return
    got, want = _rows(actual), _rows(truth)
    gap = np.abs(got - want) / np.maximum(np.abs(want).max(1, keepdims=True), 1e-300)
    worst = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
    index = np.unravel_index(worst[0] * gap.shape[1] + worst[1], tuple(truth.shape))
    pytest.fail(
        f"{name}: relative error {error:.3g} exceeds {bound:.3g} (plain computation in "
        f"{actual.dtype}: {rival_error:.3g}); worst at {tuple(map(int, index))}: got "
        f"{float(got[worst]):.9g}, expected {float(want[worst]):.9g}"
    )


def assert_as_accurate_on_average(actual, truth, rival, *, name: str = "result") -> None:
    """As `assert_as_accurate`, by the mean error over the items: for one number per item, of which
    the largest error among few is chance (in 3 of 100 sets of 32 it is twice the rival's)."""
    actual, truth, rival = (_rows(x) for x in (actual, truth, rival))
    scale = np.abs(truth).max() or 1
    error, rival_error = (float((np.abs(x - truth) / scale).mean()) for x in (actual, rival))
    bound = 2 * rival_error + ULPS * np.finfo(np.float32).eps
    assert error <= bound, f"{name}: mean relative error {error:.3g}, the rival's {rival_error:.3g}"


def assert_same_direction(actual, truth, *, name: str = "gradient") -> None:
    """The cosine of each batch item's gradient with the true one is 1 within 1e-4."""
    for item, (a, b) in enumerate(zip(_rows(actual), _rows(truth), strict=True)):
        norm = np.linalg.norm(a.astype(float)) * np.linalg.norm(b.astype(float))
        if norm > 0:
            cosine = float(a @ b) / norm
            assert cosine > 1 - 1e-4, f"{name}: cosine {cosine} with the truth in item {item}"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a fresh interpreter that finds the same kanerva_ext."""
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=tempfile.gettempdir(),  # -c would look for the package in the checkout first
        timeout=300,
        check=False,
    )


def run_processes(code: Callable[[str], str], folder: Path, count: int = 2) -> list[str]:
    """What ``count`` interpreters print that run ``code(store)``, ``KANERVA_RANK`` 0, 1, ...

    Fails with the ends of all their errors: the first to fail takes the others down. Once more,
    with a warning, where one ends by a signal: gloo's own threads do that, rarely.
    """
    for attempt in range(2):
        text = code(str(folder / f"store{attempt}"))
        done = []
        with ThreadPoolExecutor(count) as pool:
            for rank in range(count):
                environment = {"KANERVA_RANK": str(rank), "PYTHONFAULTHANDLER": "1"}
                done.append(pool.submit(run_python, text, **environment))
        done = [future.result() for future in done]
        if not any(d.returncode for d in done):
            return [d.stdout for d in done]
        ends = [f"process {r}: {d.returncode}, {d.stderr[-3000:]}" for r, d in enumerate(done)]
        if attempt or all(d.returncode >= 0 for d in done):
            break
        warnings.warn("\n".join(ends), stacklevel=2)
    raise AssertionError("\n".join(ends))


def solve_spd(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``matrix^-1 right`` by a Cholesky factor, in longdouble."""
    matrix, right = np.array(matrix, LD), np.array(right, LD)
    size = len(matrix)
    for i in range(size):  # the factor replaces the lower triangle
        matrix[i, i] = np.sqrt(matrix[i, i] - matrix[i, :i] @ matrix[i, :i])
        matrix[i + 1 :, i] -= matrix[i + 1 :, :i] @ matrix[i, :i]
        matrix[i + 1 :, i] /= matrix[i, i]
    for i in range(size):
        right[i] = (right[i] - matrix[i, :i] @ right[:i]) / matrix[i, i]
    for i in reversed(range(size)):
        right[i] = (right[i] - matrix[i + 1 :, i] @ right[i + 1 :]) / matrix[i, i]
    return right


def symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
