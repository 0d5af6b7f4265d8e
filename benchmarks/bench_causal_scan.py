"""Times of causal_scan, and of every PyTorch composition of it in `rivals.causal_scan`."""

OPERATOR = "causal_scan"


def test_causal_scan(measure):
    measure()
