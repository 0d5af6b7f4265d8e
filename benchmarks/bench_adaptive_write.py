"""Times of adaptive_write, and of every PyTorch composition of it in `rivals.adaptive_write`."""

OPERATOR = "adaptive_write"


def test_adaptive_write(measure):
    measure()
