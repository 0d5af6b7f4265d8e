"""Times of read, and of every PyTorch composition of it in `rivals.read`."""

OPERATOR = "read"


def test_read(measure):
    measure()
