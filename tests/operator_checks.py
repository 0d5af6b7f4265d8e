"""What every operator must do, as tests: each test_<operator>.py inherits `OperatorChecks`."""

from __future__ import annotations

from bad_input_checks import BadInputChecks
from derivative_checks import DerivativeChecks
from input_checks import InputChecks
from operator_base import DATA, MASK, NOISE, RIDGE, STATE

__all__ = ["DATA", "MASK", "NOISE", "RIDGE", "STATE", "OperatorChecks"]


class OperatorChecks(DerivativeChecks, InputChecks, BadInputChecks):
    """Subclasses set ``name``, ``function`` and ``signature``; see `OperatorBase`."""
