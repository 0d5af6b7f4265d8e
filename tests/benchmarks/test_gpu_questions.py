"""The questions of benchmarks/gpu_check.py, as far as a CPU can answer them."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from checkout import ROOT

from benchmarks.gpu import (
    checks,
    child,
    command,
    phases,
    problems,
    rows,
    schedule,
    timing,
    tools,
    visit,
)
from benchmarks.gpu.processes import Task
from benchmarks.gpu.schedule import Stage
from benchmarks.rivals import OPERATORS, Shape
from kanerva_ext import ops

CHECK = ROOT / "benchmarks/gpu_check.py"
VISIT = {"key": "visit", "visit": "20260101T000000", "device": "a GPU", "source": "abc"}
SMALL = (2, 5, 4, 3)


@pytest.fixture(autouse=True)
def _threads(one_thread):
    """The tensors are small."""


# Right results


def test_every_operator_has_a_problem():
    names = {"statistics": "to_statistics"}
    declared = {names.get(name, name): operator for name, operator in ops.OPERATORS.items()}
    assert sorted(phases.OPERATORS) == sorted(declared)
    without = [name for name, operator in declared.items() if not operator.differentiable]
    assert list(phases.WITHOUT_GRADIENT) == without
    for name in (*phases.OPERATORS, *phases.MOVING):
        assert problems.problem(name, SMALL).name == name


def test_every_operator_has_tests():
    """In the GPU check, and in the Makefile for other engines."""
    tell = ["make", "-s", "--eval", "tell: ; @echo $(OPERATOR_TESTS)", "tell"]
    files = subprocess.run(tell, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(files.split()) == sorted(f"tests/operators/test_{n}.py" for n in phases.TESTS)
    assert set(ops.OPERATORS) <= set(phases.TESTS)


@pytest.mark.parametrize("operator", [*phases.OPERATORS, *phases.MOVING])
def test_checks_of_an_operator(operator):
    result = checks.smoke(operator, SMALL, device="cpu")
    assert result["state"] == rows.OK
    count = 2 if operator in phases.WITHOUT_GRADIENT else 4
    assert len(result["errors"]) == count and max(result["errors"].values()) < 1e-5
    assert checks.determinism(operator, SMALL, device="cpu") == {}
    assert checks.sanitized(operator, device="cpu") == {}
    assert checks.host_threads(operator, [SMALL, (1, 9, 6, 4)], device="cpu") == {}


def test_wrong_results_are_found(monkeypatch):
    broken = problems.problem("read", SMALL)
    function = broken.function

    def wrong(*inputs, backend="auto"):
        values, var = function(*inputs, backend=backend)
        return (values, var) if backend == "reference" else (values * 1.01, var)

    monkeypatch.setattr(checks, "problem", lambda *args: broken._replace(function=wrong))
    result = checks.smoke("read", SMALL, device="cpu")
    assert result["state"] == rows.FAILED
    assert "float32 forward: error 1.0e-02, at most 1e-04" in result["note"]
    assert "float64 backward" in result["note"]


def test_results_that_are_not_the_same_are_found(monkeypatch):
    steady = checks.ready("read", SMALL, "cuda", "cpu")
    drifting = [steady._replace(inputs=(i * steady.inputs[0], *steady.inputs[1:])) for i in (1, 2)]
    calls = [lambda one=one: one.forward() for one in drifting]

    def alternating(found):
        return {"forward": lambda: calls.append(calls.pop(0)) or calls[-1]()}

    monkeypatch.setattr(checks, "calls", alternating)
    with pytest.raises(checks.Mismatch, match=r"forward, run 2: result 0 differs in 30 of 30"):
        checks.determinism("read", SMALL, device="cpu")
    with pytest.raises(checks.Mismatch, match="forward, call"):
        checks.host_threads("read", [SMALL, SMALL], device="cpu")


class _Graph:
    """Stands in for a CUDA graph: a replay computes anew into the same tensors."""

    def __init__(self, call, results, wrong):
        self.call, self.results, self.wrong = call, results, wrong

    def replay(self):
        for x, y in zip(self.results, self.call(), strict=True):
            x.copy_(y + 1 if self.wrong else y)


@pytest.mark.parametrize("wrong", [False, True])
def test_replays_are_held_against_eager_results(monkeypatch, wrong):
    def captured(call):
        results = call()
        return _Graph(call, results, wrong), results

    found = checks.ready("recall", SMALL, "cuda", "cpu")
    monkeypatch.setattr(checks, "captured", captured)
    monkeypatch.setattr(checks, "ready", lambda *args: found)
    monkeypatch.setattr(checks.torch.cuda, "synchronize", lambda: None)
    for check in (
        lambda: checks.graphs("recall", SMALL),
        lambda: checks.capture_sizes("recall", [SMALL, SMALL]),
    ):
        if wrong:
            with pytest.raises(checks.Mismatch, match=r"forward, (replay 0|one capture)"):
                check()
        else:
            assert check() == {}


# Times


def test_times_of_an_operator():
    found = timing.compare("read", "2x4x3x5", "forward_backward", device="cpu", backend="cpu")
    row = found["row"]
    assert row["ours_ms"] > 0 and row["rival_ms"] > 0 and row["ours_error"] < 1e-5
    assert row["rival"] in {r.name for r in OPERATORS["read"].rivals} and found["graph_ms"] is None
    found = timing.duel("read", "2x4x3x5", ("cpu", "reference"), device="cpu")
    assert set(found["directions"]) == {"forward", "forward_backward"}
    assert all(x["ratio"] > 0 for x in found["directions"].values())
    assert timing.profiled("read", "2x4x3x5", "forward_backward", device="cpu") == {}


def test_recursions_of_many_steps_are_not_timed():
    shape = Shape(1, timing.MOST_RECURSION + 1, 3, 5)
    found = timing.compare("bayes_write", str(shape), "forward", device="cpu", backend="cpu")
    families = {r.name: r.family for r in OPERATORS["bayes_write"].rivals}
    timed = set(found["row"]["screened_ms"]) & set(families)
    assert timed and not any(families[name] == "steps" for name in timed)


@pytest.mark.slow
def test_a_compiled_composition():
    found = timing.compiled("read", "2x4x3x5", "forward", "products", device="cpu")["row"]
    assert found["rival"] == "compile(products)" and found["rival_error"] < 1e-5


def test_the_truth_of_the_operator_is_that_of_the_definition():
    for direction in ("forward", "forward_backward"):
        made = [
            timing.measure.Problem("causal_scan", Shape(*SMALL), direction, by_operator=x)
            for x in (False, True)
        ]
        for x, y in zip(made[0].truth, made[1].truth, strict=True):
            if direction != "forward" and x.shape[-1] == x.shape[-2]:
                x, y = x + x.mT, y + y.mT
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_turns(tmp_path, monkeypatch):
    """Two processes never have the GPU at once, and one that is killed gives it back."""
    log = tmp_path / "log"
    code = f"""
        import importlib.util, os, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from benchmarks.gpu import child
        with child.turn():
            with open({str(log)!r}, "a") as file:
                file.write("in ")
                file.flush()
                if sys.argv[1] == "dies":
                    os.kill(os.getpid(), 9)
                time.sleep(0.3)
                file.write("out ")
    """
    env = {child.LOCK_VARIABLE: str(tmp_path / "turn"), "KANERVA_RESULT": str(tmp_path / "r")}
    started = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), what],
                         env={**os.environ, **env})
        for what in ("waits", "dies", "waits")
    ]  # fmt: skip
    assert sorted(process.wait(30) for process in started) == [-9, 0, 0]
    words = log.read_text().split()
    assert words.count("out") == 2 and "in in in" not in " ".join(words)
    assert '{"waiting":true}\n' in (tmp_path / "r").read_text()


# What is raised


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RuntimeError("Found no NVIDIA driver on your system. Please check"), rows.NO_GPU),
        (RuntimeError("No CUDA GPUs are available"), rows.NO_GPU),
        (AssertionError("Torch not compiled with CUDA enabled"), rows.NO_GPU),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), rows.CUDA_ERROR),
        (RuntimeError("kernel launch: misaligned address"), rows.CUDA_ERROR),
        (RuntimeError("CUDA out of memory. Tried to allocate"), rows.OUT_OF_MEMORY),
        (OSError(28, "No space left on device"), rows.DISK_FULL),
        (ValueError("something else"), rows.FAILED),
        (NameError("name 'GPU' is not defined"), rows.FAILED),
    ],
)
def test_classes_of_errors(error, state):
    assert child.classify(error)[0] == state
    try:
        raise RuntimeError("around it") from error
    except RuntimeError as outer:
        assert child.classify(outer)[0] == state


def _ask(kind: str, **question) -> dict:
    """The row of a real child."""
    done = subprocess.run(
        child.child_command(kind, **question), capture_output=True, text=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_question_ends_in_no_gpu():
    assert _ask("device")["state"] == rows.NO_GPU


def test_a_child_that_fails_says_why():
    result = _ask("smoke", operator="no such operator", shape=SMALL, device="cpu")
    assert result == {"state": rows.FAILED, "note": "KeyError: 'no such operator'"}


def test_the_checkout_is_not_taken_for_the_installed_package(monkeypatch):
    import kanerva_ext

    monkeypatch.setattr(kanerva_ext, "__file__", str(ROOT / "kanerva_ext/__init__.py"))
    with pytest.raises(RuntimeError, match="the checkout is imported, not the installed package"):
        child.require_installed("cuda")
    monkeypatch.setattr(kanerva_ext, "__file__", "/elsewhere/kanerva_ext/__init__.py")
    monkeypatch.setattr(kanerva_ext, "backends", lambda: {"cuda": "it was not built"})
    with pytest.raises(RuntimeError, match="backend cuda: it was not built"):
        child.require_installed("cuda")


def test_children_never_import_the_checkout():
    code = (
        f"import runpy, sys; sys.argv = ['x']; m = runpy.run_path({str(CHECK)!r});"
        "m['load_benchmarks'](); import importlib.util as u; import benchmarks.gpu.command;"
        "print(u.find_spec('kanerva_ext').origin if u.find_spec('kanerva_ext') else None);"
        "print('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True,
                          text=True, check=True)  # fmt: skip
    place, torch_is_there = done.stdout.splitlines()
    spec = importlib.util.find_spec("kanerva_ext")
    if ROOT not in Path(spec.origin).resolve().parents:
        assert ROOT not in Path(place).resolve().parents
    assert torch_is_there == "False"


# The build

NVCC_FAILS = """[1/3] c++ -c csrc/core/dispatch.cpp
note: error handling is as usual
FAILED: read.o
csrc/cuda/read.cu(12): error: identifier "missing" is undefined
      missing();
1 error detected in the compilation of "csrc/cuda/read.cu".
ninja: build stopped: subcommand failed.
  error: subprocess-exited-with-error
"""


def test_a_failing_build_ends_the_phase_with_the_compilers_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "log").write_text(NVCC_FAILS)
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from benchmarks.gpu import child, visit
        visit.build_command = lambda: ("sh", "-c", "cat {tmp_path}/log; exit 1")
        sys.exit(child.main(["build", '{{"arch": "9.0a", "source": "abc"}}']))
    """
    build = Task("build", (sys.executable, "-c", textwrap.dedent(code)), 60)
    after = Task("after", (sys.executable, "-c", "pass"), 60)
    stages = [Stage("build", [build], must=True), Stage("after", [after])]
    monkeypatch.setattr(phases.Plan, "stages", lambda self, phase: stages)
    assert command.main(["contact", "--out", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    ending = text.split("the phase ends here: build: failed\n", 1)[1]
    assert ending.startswith('csrc/cuda/read.cu(12): error: identifier "missing" is undef')
    found = rows.latest(rows.RowFile(tmp_path / "contact.jsonl").read())
    assert (
        found["build"]["note"].startswith("csrc/cuda/read.cu(12): error") and "after" not in found
    )


def test_the_error_of_a_build_without_a_compilers():
    assert visit.compiler_error("a\nERROR: no setuptools\nb") == "ERROR: no setuptools\nb"
    assert visit.compiler_error("x\n" * 30 + "last") == "x\n" * 11 + "last"


@pytest.mark.parametrize(("capability", "arch"), [("9.0", "9.0a"), ("8.6", "8.6"), ("", "9.0a")])
def test_architecture_to_build_for(capability, arch):
    assert visit.arch_of(capability) == arch


def test_the_hash_of_the_source_is_of_what_is_built(tmp_path, monkeypatch):
    for name in ("csrc/a.cu", "kanerva_ext/b.py", "docs/c.md", "kanerva_ext/d.so"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    monkeypatch.setattr(visit, "ROOT", tmp_path)
    seen = {visit.source_hash()}
    for name, changes in (("docs/c.md", 1), ("kanerva_ext/d.so", 1), ("csrc/a.cu", 2)):
        (tmp_path / name).write_text("y")
        seen.add(visit.source_hash())
        assert len(seen) == changes, name


# What is asked


def plan(folder: Path, **options) -> phases.Plan:
    return phases.Plan("9.0", "abc", folder, 16, **options)


def test_what_the_phases_ask(tmp_path):
    asked = {p: phases.keys(plan(tmp_path).stages(p)) for p in phases.PHASES}
    for keys in asked.values():
        assert keys[:3] == ["device", "build", "installed"] and len(keys) == len(set(keys))
    for operator in (*phases.OPERATORS, *phases.MOVING):
        for mode in ("plain", "teams"):
            for size in phases.SMOKE:
                assert f"smoke/{operator}/{size}/{mode}" in asked["contact"]
            for question in (*tools.SANITIZERS, "graphs", "capture_sizes", "streams"):
                assert f"{question}/{operator}/{mode}" in asked["contact"]
    for operator in phases.OPERATORS:
        assert f"precompile/{operator}/large/float64" in asked["triton"]
    for name in phases.TESTS:
        assert (ROOT / f"tests/operators/test_{name}.py").is_file()
        assert any(key.startswith(f"test/{name}/") for key in asked["tests"])
        assert any(key.startswith(f"test by triton/{name}/") for key in asked["triton"])
    assert set(phases.TIMED) == set(OPERATORS)
    for operator in phases.TIMED:
        assert any(key.startswith(f"compare/{operator}/") for key in asked["benchmarks"])
        assert any(key.startswith(f"duel/{operator}/") for key in asked["triton"])


def test_teams_are_forced_where_the_key_says_so(tmp_path):
    for stage in plan(tmp_path).stages("contact"):
        for one in stage.tasks:
            assert ("KANERVA_TEAM_WORK" in one.env) == one.key.endswith("/teams"), one.key


def test_every_question_has_an_answer(tmp_path):
    """Names and arguments of the questions are those of the functions that answer."""
    import inspect

    for phase in phases.PHASES:
        for stage in plan(tmp_path, rehearsal=True).stages(phase):
            tasks = stage.tasks([]) if callable(stage.tasks) else stage.tasks
            for one in tasks:
                kind, question = one.command[-2], json.loads(one.command[-1])
                inspect.signature(child.find(kind)).bind(**question)
                if kind in ("sanitize", "profile"):
                    question.pop("tool", None)
                    inner = {"sanitize": "sanitized", "profile": "profiled"}[kind]
                    inspect.signature(child.find(inner)).bind(**question)


def test_compiled_follows_from_what_was_compared(tmp_path):
    good = {"state": rows.OK, "result": {"row": {"rival": "inner"}}}
    found = [
        {"key": "compare/read/16x32x32x100/forward", **good},
        {"key": "compare/recall/16x32x32x100/forward", "state": rows.HUNG},
    ]
    (one,) = plan(tmp_path)._compiled(found)
    assert one.key == "compiled/read/16x32x32x100/forward"
    assert json.loads(one.command[-1])["rival"] == "inner"


def test_the_command_line(tmp_path, monkeypatch, capsys):
    assert command.main(["tests", "--out", str(tmp_path), "--dry-run", "--only", "/read/"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed and all("/read/" in key for key in printed if "/" in key)
    (tmp_path / "file").write_text("")
    assert command.main(["tests", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["dance", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main(["tests", "--out", str(tmp_path), "--seconds", "0"])
    with pytest.raises(SystemExit):
        command.main(["tests", "--out", str(tmp_path), "--at-once", "0"])
    assert "--at-once must be at least 1, got 0" in capsys.readouterr().err
    made, real = [], phases.Plan
    monkeypatch.setattr(phases, "Plan", lambda *args: made.append(args) or real(*args))
    for more, at_once in (["--at-once", "7"], 7), ([], visit.processes_at_once()):
        assert command.main(["tests", "--out", str(tmp_path), "--dry-run", *more]) == 0
        assert made[-1][3] == at_once


def test_a_rehearsal_tells_what_is_not_as_it_should_be(tmp_path, monkeypatch, capsys):
    def stages(states):
        code = "import os; open(os.environ['KANERVA_RESULT'], 'w').write('{\"state\": \"%s\"}')"
        return [Stage("s", [Task(key, (sys.executable, "-c", code % state), 30)
                            for key, state in states.items()])]  # fmt: skip

    good = {"device": rows.NO_GPU, "build": rows.OK, "smoke/a": rows.NO_GPU}
    monkeypatch.setattr(phases.Plan, "stages", lambda self, phase: stages(good))
    assert command.main(["rehearse", "--out", str(tmp_path / "a")]) == 0
    bad = {**good, "smoke/a": rows.FAILED, "smoke/b": rows.OK}
    monkeypatch.setattr(phases.Plan, "stages", lambda self, phase: stages(bad))
    assert command.main(["rehearse", "--out", str(tmp_path / "b")]) == 1
    text = capsys.readouterr().out
    assert "tests: smoke/a: failed" in text and "triton: smoke/b: ok" in text
    monkeypatch.setattr(schedule, "LEAST", 1e9)
    monkeypatch.setattr(phases.Plan, "stages", lambda self, phase: stages(good))
    assert command.main(["rehearse", "--out", str(tmp_path / "c")]) == 1
    assert "contact: smoke/a: not asked" in capsys.readouterr().out


def test_a_rehearsal_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    """What ended in "no GPU" is done; what ended otherwise is asked anew."""
    log, state = tmp_path / "log", tmp_path / "state"
    code = (
        f"import os; open({str(log)!r}, 'a').write('x'); state = open({str(state)!r}).read();"
        "open(os.environ['KANERVA_RESULT'], 'w').write('{\"state\": \"%s\"}' % state)"
    )
    asked = [Stage("s", [Task("smoke/a", (sys.executable, "-c", code), 30)])]
    monkeypatch.setattr(phases.Plan, "stages", lambda self, phase: asked)
    for found, status, count in ((rows.FAILED, 1, 4), (rows.NO_GPU, 0, 8), (rows.OK, 0, 8)):
        state.write_text(found)
        assert command.main(["rehearse", "--out", str(tmp_path / "rows")]) == status
        assert len(log.read_text()) == count


def test_a_rehearsal_that_asks_nothing_in_a_phase_fails(tmp_path, monkeypatch, capsys):
    def stages(self, phase):
        code = "import os; open(os.environ['KANERVA_RESULT'], 'w').write('{\"state\": \"%s\"}')"
        asked = {"device": rows.NO_GPU, "build": rows.OK, "smoke/a": rows.NO_GPU}
        if phase == "triton":
            del asked["smoke/a"]
        tasks = [
            Task(key, (sys.executable, "-c", code % state), 30) for key, state in asked.items()
        ]
        return [Stage("s", tasks)]

    monkeypatch.setattr(phases.Plan, "stages", stages)
    assert command.main(["rehearse", "--out", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "triton: no question of its own was asked" in text and "contact: no question" not in text


def test_what_check_torch_asks_is_asked_in_every_phase(tmp_path):
    text = (Path(phases.__file__).parents[2] / "scripts/check_torch.py").read_text()
    words = {
        word.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign | ast.AugAssign)
        and ast.unparse(node).startswith("QUESTIONS")
        for word in ast.walk(node)
        if isinstance(word, ast.Constant)
    }
    for phase in phases.PHASES:
        found = phases.keys(plan(tmp_path, rehearsal=True).stages(phase))
        assert any(word in key for word in words for key in found), phase
    assert len(words) == 6
