"""Episodes of different lengths in one batch: pad, and mask the padding.

    python examples/variable_length.py

A masked step is skipped exactly: the memory is what it would be had the step not been there, and
whatever stands in the padding (here NaN) has no effect on values or gradients.
"""

import torch

from kanerva_ext import FusedKanervaMemory


def main():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 10, 7])
    episodes = [torch.randn(length, 16) for length in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(
        episodes, batch_first=True, padding_value=float("nan")
    )  # (3, 10, 16)
    mask = torch.arange(batch.shape[1]) < lengths[:, None]  # (3, 10), True: a step of the episode

    memory = FusedKanervaMemory(memory_size=8, code_size=16, noise_std=0.1)
    out = memory(batch, mask=mask)

    differences = []
    for i, episode in enumerate(episodes):
        alone = memory(episode[None])
        difference = (alone.values[0] - out.values[i, : len(episode)]).abs().max().item()
        differences.append(difference)
        print(f"episode of {len(episode):2d}: differs from writing it alone by {difference:.1e}")
    return max(differences)


if __name__ == "__main__":
    main()
