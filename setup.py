"""Builds the compiled libraries; everything else is declared in pyproject.toml.

Never imports torch: build_backend finds its headers by path.
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_backend.build_ext import FreshBuildPy, NinjaBuildExt, extensions

setup(ext_modules=extensions(), cmdclass={"build_py": FreshBuildPy, "build_ext": NinjaBuildExt})
