"""A memory that lives through many calls: write a stream piece by piece, read at any time.

    python examples/streaming.py

The state is a value. Each write returns the next one, exactly what one long write would have
given; `kl_memory` says how much a piece changed the memory, and `var` how sure a read is.
"""

import torch

from kanerva_ext import FusedKanervaMemory


@torch.no_grad()
def main():
    torch.manual_seed(0)
    memory = FusedKanervaMemory(
        memory_size=64, code_size=16, addressing="key", key_size=64, noise_std=0.1
    )
    keys, values = torch.randn(1, 40, 64), torch.randn(1, 40, 16)

    state = memory.prior(1)
    for start in range(0, 40, 8):
        piece = slice(start, start + 8)
        written = memory.write(values[:, piece], state, keys=keys[:, piece])
        state = written.state
        read = memory.read(keys, state)
        error = (read.values - values).square().mean(-1).sqrt()[0]
        seen, unseen = error[: start + 8], error[start + 8 :]
        print(
            f"after {start + 8:2d}: changed by {written.kl_memory.item():6.1f} nats; error "
            f"{seen.mean():.2f} where written"
            + (f", {unseen.mean():.2f} where not yet" if len(unseen) else "")
            + f"; variance {read.var[0, : start + 8].mean():.3f}"
            + (f" and {read.var[0, start + 8 :].mean():.3f}" if len(unseen) else "")
        )

    at_once = memory.write(values, keys=keys).state
    difference = (at_once.mean - state.mean).abs().max().item()
    print(f"one write of all 40 gives the same memory to {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
