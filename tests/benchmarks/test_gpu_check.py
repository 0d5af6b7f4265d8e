"""The bookkeeping of benchmarks/gpu_check.py, with real processes on the CPU: limits, kills, hangs,
crashes, a full disk, and going on with what is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from checkout import ROOT

from benchmarks.gpu import processes, rows, schedule
from benchmarks.gpu.processes import Task
from benchmarks.gpu.schedule import Schedule, Stage, Stopped

CHECK = ROOT / "benchmarks/gpu_check.py"
VISIT = {"key": "visit", "visit": "20260101T000000", "device": "a GPU", "source": "abc"}
RESULT = (
    "import json, os; say = lambda x: open(os.environ['KANERVA_RESULT'], 'a')"
    ".write(json.dumps(x) + '\\n');"
)
HANG = "import time; time.sleep(300)"
CRASH = "import ctypes; ctypes.string_at(0)"


def task(key: str, code: str, limit: float = 20, **options) -> Task:
    return Task(key, (sys.executable, "-c", textwrap.dedent(code)), limit, **options)


def run(code: str, limit: float = 20, seconds: float = 60, **options):
    return processes.run(task("t", code, limit, **options), time.monotonic() + seconds)


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Writes until nothing more goes in."""
    with open(path, "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


# Rows


def test_rows_are_valid_json_whatever_the_numbers(tmp_path):
    file = rows.RowFile(tmp_path / "rows.jsonl")
    result = {"a": float("inf"), "b": [float("-inf"), float("nan")], "c": (1, None), 2: {3.5}}
    assert file.append({"key": "k", "result": result})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    (line,) = file.path.read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert row["result"] == {"a": "inf", "b": ["-inf", "nan"], "c": [1, None], "2": [3.5]}
    assert float(row["result"]["a"]) == float("inf")


def test_a_row_cut_in_two_costs_no_other(tmp_path):
    file = rows.RowFile(tmp_path / "rows.jsonl")
    file.append({"key": "a"})
    with open(file.path, "a") as half:
        half.write('{"key": "b", "sta')  # a parent was killed here
    assert rows.RowFile(file.path).append({"key": "c"})
    assert [row["key"] for row in file.read()] == ["a", "c"]


def test_rows_wait_for_a_full_disk(small_disk):
    file = rows.RowFile(small_disk / "rows.jsonl")
    assert file.append({"key": "a"})
    fill(small_disk / "filler")
    assert not file.append({"key": "b", "note": "x" * 5000})
    assert not file.append({"key": "c"})
    assert [row["key"] for row in file.read()] == ["a", "b", "c"]
    assert [json.loads(x)["key"] for x in file.path.read_text().splitlines()] == ["a"]
    (small_disk / "filler").unlink()
    assert file.append({"key": "d"}) and not file.pending
    assert [json.loads(x)["key"] for x in file.path.read_text().splitlines()] == list("abcd")


# One process


def test_a_result_and_an_exit_status():
    outcome = run(RESULT + "say({'state': 'ok', 'x': 1})")
    assert (outcome.state, outcome.result) == (rows.OK, {"state": "ok", "x": 1})
    assert run("pass").state == rows.OK
    outcome = run("print('the cause'); raise SystemExit(3)")
    assert outcome.state == rows.FAILED and outcome.note == "exit status 3: the cause"
    assert run("pass", answers=True).state == rows.FAILED
    outcome = processes.run(Task("t", ("/nonexistent/program",), 5), time.monotonic() + 5)
    assert outcome.state == rows.FAILED and "/nonexistent/program" in outcome.note


def test_a_child_that_hangs_is_killed_with_its_children(tmp_path):
    code = f"""
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(['sleep', '300'])
        open({str(tmp_path / "pid")!r}, 'w').write(str(child.pid))
        child.wait()
    """
    started = time.monotonic()
    outcome = run(code, limit=6)
    assert outcome.state == rows.HUNG and outcome.note == "stopped after 6 s at most"
    assert time.monotonic() - started < 30
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not is_alive(pid))


def test_children_that_outlive_their_parent_are_killed(tmp_path):
    code = f"""
        import os, subprocess
        child = subprocess.Popen(['sleep', '300'], preexec_fn=os.setpgrp)
        open({str(tmp_path / "pid")!r}, 'w').write(str(child.pid))
    """
    assert run(code).state == rows.OK
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not is_alive(pid))


@pytest.mark.parametrize(
    ("code", "name"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"), (CRASH, "SIGSEGV")],
)
def test_a_child_that_is_killed(code, name):
    outcome = run(code)
    assert (outcome.state, outcome.note) == (rows.KILLED, f"by {name}")
    outcome = run(RESULT + "say({'state': 'ok'});" + code)
    assert outcome.note == f"by {name} after its result, which was ok"


def test_a_child_that_cannot_be_killed_is_left_behind(monkeypatch):
    """As one that waits in a driver: the kill is taken away here."""
    killed = []
    monkeypatch.setattr(processes, "GRACE", 0.5)
    monkeypatch.setattr(processes, "kill_session", killed.append)
    outcome = run("import time; time.sleep(6)", limit=1)
    assert outcome.state == rows.STUCK and "did not go" in outcome.note
    os.kill(killed[0], signal.SIGKILL)


def test_what_a_child_prints_is_cut(monkeypatch):
    monkeypatch.setattr(processes, "MOST_OUTPUT", 2**20)
    outcome = run("while True: print('x' * 1000)")
    assert outcome.state == rows.FAILED and outcome.note == "stopped: it printed more than 1 MiB"
    assert len(outcome.output) < 2 * processes.TAIL
    outcome = run("print('first'); print('x' * 100_000); print('last')")
    assert outcome.output.startswith("first") and outcome.output.endswith("last\n")


@pytest.mark.slow
def test_waiting_for_a_turn_is_not_late():
    wait = "say({'waiting': True}); import time; time.sleep(3); say({'waiting': False});"
    outcome = run(RESULT + wait + "say({'state': 'ok'})", limit=1.5)
    assert outcome.state == rows.OK
    outcome = run(RESULT + wait + "time.sleep(60)", limit=1.5)
    assert outcome.state == rows.HUNG and 4 < outcome.seconds < 15


@pytest.mark.slow
def test_a_limit_of_silence():
    code = "import time\nfor i in range(6): say({'key': str(i)}); time.sleep(0.5)\ntime.sleep(60)"
    outcome = run(RESULT + "\n" + code, limit=2, silence=True)
    assert outcome.state == rows.HUNG and outcome.note == "stopped after 2 s without a line"
    assert len(outcome.lines) == 6


def test_the_end_of_the_phase_cuts_a_child_off():
    outcome = run(HANG, seconds=1)
    assert (outcome.state, outcome.note) == (rows.NO_TIME, "cut off by the end of the phase")


def test_a_child_that_meets_a_full_disk():
    outcome = run("open('/dev/full', 'w').write('x' * 100_000)")
    assert (outcome.state, outcome.note) == (rows.DISK_FULL, "No space left on device")


def test_a_child_that_fills_the_disk_costs_one_row(small_disk, monkeypatch):
    """The disk of the temporary folders and of the rows: both are there again for the next one."""
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    code = "import tempfile; open(tempfile.mkstemp()[1], 'wb', buffering=0).write(b'x' * 10**6)"
    loop = "\nwhile True: open(tempfile.mkstemp()[1], 'wb').write(b'x' * 4096)"
    file = rows.RowFile(small_disk / "rows.jsonl")
    found = Schedule(file, VISIT, 60, say=lambda text: None)
    file.append(VISIT)
    found.run([Stage("s", [task("a", "pass"), task("full", code + loop), task("b", "pass")])])
    states = {row["key"]: row["state"] for row in rows.parse(file.path.read_text())[1:]}
    assert states == {"a": rows.OK, "full": rows.DISK_FULL, "b": rows.OK}


def test_no_room_for_a_temporary_folder(small_disk, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(small_disk / "gone"))
    assert run("pass").state == rows.DISK_FULL


# Many processes


def scheduled(folder: Path, stages, seconds: float = 60, visit=VISIT, again=()):
    """Runs stages; {key: state of its last row}, and the schedule."""
    file = rows.RowFile(folder / "phase.jsonl")
    found = Schedule(file, visit, seconds, again, say=lambda text: None)
    file.append(visit)
    found.run(stages)
    last = rows.latest(row for row in file.read() if "state" in row)
    return {key: row["state"] for key, row in last.items()}, found


def count_rows(folder: Path) -> int:
    return sum("state" in row for row in rows.RowFile(folder / "phase.jsonl").read())


def test_a_hanging_and_a_crashing_child_lose_one_row_each(tmp_path):
    tasks = [
        task("good 1", "pass"),
        task("hangs", HANG, limit=2),
        task("crashes", CRASH),
        task("killed", "import os; os.kill(os.getpid(), 9)"),
        task("good 2", RESULT + "say({'state': 'ok', 'x': float('1')})"),
        task("full", "open('/dev/full', 'w').write('x' * 100_000)"),
        task("good 3", "pass"),
    ]
    states, _ = scheduled(tmp_path, [Stage("s", tasks, workers=2)])
    assert states == {
        "good 1": rows.OK,
        "hangs": rows.HUNG,
        "crashes": rows.KILLED,
        "killed": rows.KILLED,
        "good 2": rows.OK,
        "full": rows.DISK_FULL,
        "good 3": rows.OK,
    }
    assert count_rows(tmp_path) == len(tasks)


def test_a_phase_goes_on_with_what_is_missing(tmp_path):
    def leaves(name):
        return task(name, f"open({str(tmp_path)!r} + '/{name}', 'a').write('x')")

    slow = [leaves("a"), task("slow", HANG), leaves("b")]
    states, found = scheduled(tmp_path, [Stage("s", slow)], seconds=7)
    assert states == {"a": rows.OK, "slow": rows.NO_TIME}
    assert set(found.missing) == {"slow", "b"}
    quick = [leaves("a"), leaves("slow"), leaves("b")]
    states, found = scheduled(tmp_path, [Stage("s", quick)])
    assert set(states.values()) == {rows.OK} and not found.missing
    assert [(tmp_path / name).read_text() for name in ("a", "slow", "b")] == ["x"] * 3

    scheduled(tmp_path, [Stage("s", quick)], again=["b"])
    assert [(tmp_path / name).read_text() for name in ("a", "slow", "b")] == ["x", "x", "xx"]
    changed = {**VISIT, "visit": "later", "source": "another"}
    scheduled(tmp_path, [Stage("s", quick)], visit=changed)
    assert [(tmp_path / name).read_text() for name in ("a", "slow", "b")] == ["xx", "xx", "xxx"]
    elsewhere = {**VISIT, "visit": "last", "device": "another GPU"}
    scheduled(tmp_path, [Stage("s", quick[:1])], visit=elsewhere)
    assert (tmp_path / "a").read_text() == "xxx"


def test_what_had_no_gpu_is_missing(tmp_path):
    code = RESULT + "say({'state': 'no GPU', 'note': 'none'})"
    assert scheduled(tmp_path, [Stage("s", [task("a", code)])])[0] == {"a": rows.NO_GPU}
    assert scheduled(tmp_path, [Stage("s", [task("a", "pass")])])[0] == {"a": rows.OK}


def test_a_stage_that_must_succeed_ends_the_phase(tmp_path):
    stages = [
        Stage("build", [task("build", "raise SystemExit(1)")], must=True),
        Stage("s", [task("a", "pass")]),
    ]
    with pytest.raises(Stopped, match="build: failed"):
        scheduled(tmp_path, stages)
    assert count_rows(tmp_path) == 1


def test_what_every_visit_needs_is_done_at_every_visit(tmp_path):
    """A build of another visit may be of another machine."""
    stage = Stage("build", [task("build", "pass")], must=True, anew=True)
    scheduled(tmp_path, [stage])
    scheduled(tmp_path, [stage])
    assert count_rows(tmp_path) == 2


def test_a_device_whose_processes_cannot_be_killed_is_given_up(tmp_path, monkeypatch):
    stuck = processes.Outcome(rows.STUCK)
    monkeypatch.setattr(schedule.processes, "run", lambda *args: stuck)
    states, found = scheduled(tmp_path, [Stage("s", [task(str(i), "pass") for i in range(9)])])
    assert len(states) == schedule.MOST_STUCK and len(found.missing) == 9 - schedule.MOST_STUCK


def test_tasks_that_follow_from_rows(tmp_path):
    first = Stage("s", [task("a", "pass"), task("b", "raise SystemExit(1)")])

    def others(found):
        good = [row["key"] for row in found if row.get("state") == rows.OK]
        return [task(f"{key} again", "pass") for key in good]

    states, _ = scheduled(tmp_path, [first, Stage("t", others)])
    assert states == {"a": rows.OK, "b": rows.FAILED, "a again": rows.OK}


PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from benchmarks.gpu import rows, child
from benchmarks.gpu.processes import Task
from benchmarks.gpu.schedule import Schedule, Stage, stop_on_signals
quick = Task("quick", (sys.executable, "-c", "pass"), 20)
code = "import sys; sys.path.insert(0, {root!r})\\n" \\
    "from benchmarks.gpu.child import die_with_parent\\n" + {code!r}
slow = Task("slow", (sys.executable, "-c", code), 60)
file = rows.RowFile(Path({path!r}))
about = {visit!r}
file.append(about)
run = Schedule(file, about, 60)
with stop_on_signals(run):
    run.run([Stage("s", [quick, slow])])
print("ended in good order")
"""


SLEEPS = """
die_with_parent()
import os, time
open({pid!r}, "w").write(str(os.getpid()))
time.sleep(300)
"""
#: As a build does, whose compilers have groups of their own and know nothing of gpu_check.
RUNS_OTHERS = """
die_with_parent(with_session=True)
import os, subprocess
command = ["sh", "-c", "echo $$ > {pid}; sleep 300; true"]
subprocess.Popen(command, preexec_fn=os.setpgrp).wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda x: x.name)
@pytest.mark.parametrize("child", [SLEEPS, RUNS_OTHERS], ids=["child", "its children"])
def test_a_parent_that_is_killed_keeps_its_rows_and_leaves_no_child(tmp_path, number, child):
    path, pid = tmp_path / "phase.jsonl", tmp_path / "pid"
    code = PARENT.format(
        root=str(ROOT), path=str(path), code=child.format(pid=str(pid)), visit=VISIT
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: pid.exists() and pid.read_text())
    parent.send_signal(number)
    printed, _ = parent.communicate(timeout=30)
    assert wait_until(lambda: not is_alive(int(pid.read_text())))
    states = {r["key"]: r["state"] for r in rows.parse(path.read_text()) if "state" in r}
    if number == signal.SIGKILL:
        assert states == {"quick": rows.OK}
    else:
        assert states == {"quick": rows.OK, "slow": rows.NO_TIME}
        assert "ended in good order" in printed
    again, _ = scheduled(tmp_path, [Stage("s", [task("quick", "1 / 0"), task("slow", "pass")])])
    assert again == {"quick": rows.OK, "slow": rows.OK}


def test_a_machine_that_has_nothing_installed_yet(tmp_path):
    """The first visit begins with the build: no kanerva_ext, which comes of it, is asked for."""
    command = [sys.executable, "-S", "-E", str(CHECK), "contact", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("device\nbuild\ninstalled\nsmoke/")
