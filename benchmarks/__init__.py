"""Measurements of kanerva_ext against the fastest PyTorch compositions for the same results."""

import sys
from importlib.util import find_spec
from pathlib import Path

# ``python -m benchmarks.compare`` puts the checkout first on the path, before the kanerva_ext that
# is installed; last, it hides nothing.
_CHECKOUT = Path(__file__).resolve().parents[1]
_hiding = [entry for entry in sys.path if Path(entry or ".").resolve() == _CHECKOUT]
for _entry in _hiding:
    sys.path.remove(_entry)
if _hiding:
    sys.path.append(str(_CHECKOUT))

if _missing := [each for each in ("numpy", "torch", "kanerva_ext") if find_spec(each) is None]:
    raise SystemExit(f"benchmarks: {', '.join(_missing)} missing: pip install '.[benchmark]'")
