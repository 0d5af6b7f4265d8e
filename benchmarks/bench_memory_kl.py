"""Times of memory_kl, and of every PyTorch composition of it in `rivals.memory_kl`."""

OPERATOR = "memory_kl"


def test_memory_kl(measure):
    measure()
