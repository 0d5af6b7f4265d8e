"""Times of every operator, and of every PyTorch composition of it in `rivals`.

``pytest benchmarks/bench_operators.py -k "[read-"`` for one operator.
"""


def test_operator(measure):
    measure()
