"""What is done once for each kernel and device, by many threads, also under ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from checkout import ROOT

SOURCE = Path(__file__).with_name("once_per_kernel.cpp")

pytestmark = pytest.mark.skipif(not (ROOT / "csrc/cuda").is_dir(), reason="needs the source tree")


def fixed_addresses() -> tuple[str, ...]:
    """ThreadSanitizer fails on some systems' address spaces that are laid out at random."""
    command = ("setarch", "-R")
    if shutil.which("setarch") is None:
        return ()
    return (
        command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else ()
    )


@pytest.mark.parametrize("options", [(), ("-fsanitize=thread",)], ids=["plain", "ThreadSanitizer"])
def test_once_per_kernel(options, tmp_path):
    program = tmp_path / "once"
    compiler = os.environ.get("CXX", "c++").split()
    command = [*compiler, "-std=c++17", "-O1", "-g", "-pthread", *options, "-o", str(program)]
    built = subprocess.run([*command, str(SOURCE)], capture_output=True, text=True)
    if options and built.returncode != 0:
        pytest.skip("the compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    run = [*fixed_addresses(), str(program)] if options else [str(program)]
    done = subprocess.run(run, capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this machine")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
