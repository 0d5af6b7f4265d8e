"""Times of to_statistics (from_statistics is the same computation) and of its rivals."""

OPERATOR = "statistics"


def test_statistics(measure):
    measure()
