"""Times of bayes_write, and of every PyTorch composition of it in `rivals.bayes_write`."""

OPERATOR = "bayes_write"


def test_bayes_write(measure):
    measure()
