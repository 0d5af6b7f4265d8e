"""How well iterative solvers answer a query, against the exact answer."""

import torch
from _common import BLUE, GREEN, GREY, RED, main, plt

from kanerva_ext import ops

SLOTS, CODE, STEPS = 64, 64, 128


def conjugate_gradients(matrix, queries, rounds):
    """The iterates x of ``matrix x = q`` from zero, for the rows of ``queries``."""
    x, r = torch.zeros_like(queries), queries.clone()
    p, old = r.clone(), r.square().sum(-1, keepdim=True)
    for _ in range(rounds):
        product = p @ matrix
        step = old / (p * product).sum(-1, keepdim=True).clamp(min=1e-30)
        x, r = x + step * p, r - step * product
        new = r.square().sum(-1, keepdim=True)
        p, old = r + new / old.clamp(min=1e-30) * p, new
        yield x


def pseudo_inverse(matrix, rounds, start=5e-4):
    """Ben-Israel and Cohen's iterates X <- 2X - X A X from ``start`` A'."""
    x = start * matrix.mT
    for _ in range(rounds):
        x = 2 * x - x @ matrix @ x
        yield x


def errors(keys, values, queries, noise, rounds):
    """Relative errors of a read: by so many rounds of conjugate gradients, and by bayes_write."""
    wide = [x.double() for x in (keys, values)]
    zero, one = torch.zeros(1, SLOTS, CODE).double(), torch.eye(SLOTS).double()
    mean, cov, _ = ops.bayes_write(zero, one, *wide, noise)
    truth = ops.read(mean, cov, queries.double())[0]
    system = keys[0].mT @ keys[0] / noise + torch.eye(SLOTS)
    sums = keys[0].mT @ values[0] / noise
    found = [
        (x @ sums - truth[0]).abs().max() / truth.abs().max()
        for x in conjugate_gradients(system, queries[0], rounds)
    ]
    state = ops.bayes_write(zero.float(), one.float(), keys, values, noise)[:2]
    exact = (ops.read(*state, queries)[0] - truth).abs().max() / truth.abs().max()
    return found, exact


def draw():
    torch.manual_seed(0)
    # Some directions are a hundred times rarer than others, as in keys that were learned.
    normal = torch.randn(1, STEPS, SLOTS)
    keys = torch.nn.functional.normalize(
        normal * torch.logspace(0, -2, SLOTS), dim=-1
    )
    values, queries = torch.randn(1, STEPS, CODE), torch.randn(1, 32, SLOTS)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.4), layout="constrained"
    )
    rounds = torch.arange(1, 65)
    for noise, color in ((1.0, GREEN), (1e-2, BLUE), (1e-4, RED)):
        found, exact = errors(keys, values, queries, noise, len(rounds))
        equal = torch.nn.functional.normalize(normal, dim=-1)
        as_common, _ = errors(equal, values, queries, noise, 30)
        print(
            f"noise variance {noise:g}: 30 rounds {found[29]:.0e}, 64 rounds {found[63]:.0e}, "
            f"bayes_write {exact:.0e}; directions equally common, 30 rounds {as_common[29]:.0e}"
        )
        left.plot(rounds, found, color=color, label=f"noise variance {noise:g}")
        left.axhline(exact, color=color, ls=":", lw=1)
    left.axvline(30, color=GREY, ls=":", lw=0.8)
    left.set(
        yscale="log",
        xlabel="rounds of conjugate gradients",
        ylabel="relative error",
        title="read after a write; dotted: bayes_write",
    )
    left.legend(fontsize=8)

    mean = torch.randn(1, 32, 100)
    codes = torch.randn(1, 16, 100)
    truth = ops.solve_addresses(mean.double(), codes.double(), 1e-12)
    exact = (
        ops.solve_addresses(mean, codes, 1e-12) - truth
    ).abs().max() / truth.abs().max()
    found = [
        (codes @ x - truth).abs().max() / truth.abs().max()
        for x in pseudo_inverse(mean, 20)
    ]
    print(
        "pseudo-inverse after 3, 7, 15 rounds:",
        [f"{found[i - 1]:.0e}" for i in (3, 7, 15)],
        f"solve_addresses {exact:.0e}",
    )
    right.plot(range(1, 21), found, color=BLUE, marker=".")
    right.axhline(exact, color=BLUE, ls=":", lw=1)
    right.axvline(15, color=GREY, ls=":", lw=0.8)
    right.set(
        yscale="log",
        xlabel="rounds of the pseudo-inverse",
        xticks=range(0, 21, 5),
        title="addresses; dotted: solve_addresses",
    )
    return figure


if __name__ == "__main__":
    main(__file__, __doc__, draw)
