"""The CUDA kernels on the host: every result finite and the same in any order of the threads, no
race between two barriers, no access outside a buffer.

Their results are compared with the truth by the operators' own tests, run on the library that
``scripts/kernels_on_host.py --library`` makes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc/cuda").is_dir(), reason="needs the source tree, which is not here"
)


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import kernels_on_host
    finally:
        sys.path.pop(0)
    return kernels_on_host


@pytest.fixture(scope="module")
def thread_program(tool, sanitizers):
    return tool.build_program(sanitizers("thread"))


@pytest.fixture(scope="module")
def sanitizers(tool, tmp_path_factory):
    """Skips where the compiler has no such sanitizer, or where it does not run."""

    def check(name):
        folder = tmp_path_factory.mktemp(name)
        (folder / "empty.cpp").write_text("int main() { return 0; }\n")
        program = folder / "empty"
        command = [*tool.compiler(), f"-fsanitize={name}", "-o", str(program)]
        built = subprocess.run([*command, str(folder / "empty.cpp")], capture_output=True)
        if built.returncode != 0:
            pytest.skip(f"the compiler has no -fsanitize={name}")
        if tool.run_program(program).returncode != 0:
            pytest.skip(f"-fsanitize={name} does not run on this machine")
        return name

    return check


def test_no_races_and_results_do_not_depend_on_the_order(tool, thread_program):
    done = tool.run_program(thread_program)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count(" ok\n") > 60


@pytest.mark.parametrize(
    ("operator", "barrier"), [("bayes_write", 5), ("bayes_write_backward", 6), ("recall", 3)]
)
def test_a_barrier_left_out_is_noticed(tool, thread_program, operator, barrier):
    done = tool.run_program(thread_program, operator, KANERVA_HOST_SKIP_BARRIER=str(barrier))
    assert done.returncode == 66, done.stdout[-2000:] + done.stderr[-2000:]
    assert "data race" in done.stderr


def test_no_access_outside_a_buffer(tool, sanitizers):
    done = tool.run_program(tool.build_program(sanitizers("address")))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
