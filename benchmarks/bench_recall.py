"""Times of recall, and of every PyTorch composition of it in `rivals.recall`."""

OPERATOR = "recall"


def test_recall(measure):
    measure()
