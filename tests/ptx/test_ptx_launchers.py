"""What launchers of the CUDA kernels decide on the host: tests/kernels_on_ptx/launching.cu."""

import ptx_tool
import pytest

pytestmark = ptx_tool.MARKS


CASES = ("forced", "counted", "environment", "columns", "clusters")
OF_SEGMENTS = ("cut_by_count", "cut_to_the_end", "segments_of_the_environment")


@pytest.mark.parametrize("case", [*CASES, *OF_SEGMENTS])
def test_what_launchers_decide(kernels_on_ptx, case):
    """Forced teams fit the processors; work is counted; a bad KANERVA_TEAM_WORK is refused.
    Sequences are cut by count, and into segments that fit their rooms."""
    program = kernels_on_ptx.build_launching()
    done = kernels_on_ptx.run_program(program, kernels_on_ptx.FIXTURES, case)
    assert done.stdout.startswith("ok\n"), done.stdout + done.stderr
