"""Times of forget, and of every PyTorch composition of it in `rivals.forget`."""

OPERATOR = "forget"


def test_forget(measure):
    measure()
