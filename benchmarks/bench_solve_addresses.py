"""Times of solve_addresses, and of every PyTorch composition of it in `rivals.solve_addresses`."""

OPERATOR = "solve_addresses"


def test_solve_addresses(measure):
    measure()
