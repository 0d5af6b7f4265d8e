"""What an operator is given in the tests that all operators share: as its own tests say.

A sample of arguments of operator ``x`` is made by the class in ``tests/operators/test_x.py``, from
the signature written there and, where not all numbers serve, its method ``arguments``.
"""

from __future__ import annotations

import importlib
import inspect
import sys

from checkout import ROOT
from operator_base import OperatorBase

from kanerva_ext import ops

OPERATORS = ROOT / "tests/operators"
#: Those with a gradient. causal_step has none; its tests are all in test_causal_step.py.
NAMES = [name for name, operator in ops.OPERATORS.items() if operator.differentiable]


def sample(name: str) -> OperatorBase:
    """The first class of ``tests/operators/test_<name>.py`` that has the operator's signature."""
    if str(OPERATORS) not in sys.path:  # in a process of its own
        sys.path.append(str(OPERATORS))
    module = importlib.import_module(f"test_{name}")
    classes = (c for c in vars(module).values() if inspect.isclass(c))
    return next(c for c in classes if issubclass(c, OperatorBase) and hasattr(c, "signature"))()
