"""An EpisodicMemory's file and the processes that want it."""

import os
import shutil
import subprocess
import sys

import pytest
from episodic_cases import cases

from kanerva_ext.episodic import EpisodicMemory

S, C, K = 8, 4, 16
facts, make, _ = cases(S, C, K)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


# A process of its own: the threads of this one's PyTorch do not survive a fork.
FORKS = """
import os, sys, torch
from kanerva_ext.episodic import EpisodicMemory
torch.set_num_threads(1)
path = sys.argv[1]
torch.manual_seed(0)
keys, values = torch.randn(60, {S}), torch.randn(60, {C})
memory = EpisodicMemory({S}, {C}, {K}, store=path)
memory.write(keys[:20], values[:20])
memory.read(keys[:1])
for call in (
    lambda: memory.write(keys[20:40], values[20:40]),
    lambda: memory.forget([0]),
    lambda: list(memory),
    lambda: memory.save(path),
    lambda: EpisodicMemory.load(path),
    lambda: memory.read(keys[:3]).values.shape,  # what it has in its own memory it has
    memory.close,
):
    if not os.fork():
        try:
            said = f"returned {{call()}}"
        except BaseException as error:
            said = f"{{type(error).__name__}}: {{error}}"
        print(said, flush=True)
        os._exit(0)
    os.wait()
memory.write(keys[40:], values[40:])
memory.close()
with EpisodicMemory.load(path) as again:
    assert len(again) == len(list(again)) == 40
    assert torch.equal(again.get(list(again)).keys, torch.cat([keys[:20], keys[40:]]))
    assert again._store._select("PRAGMA integrity_check") == [("ok",)]
"""


def run(code, path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_fork
def test_a_forked_process_does_not_have_the_store(tmp_path):
    said = run(FORKS.format(S=S, C=C, K=K), tmp_path / "facts.db").splitlines()
    assert len(said) == 7
    for line in said[:5]:
        assert line.startswith("OSError") and "has it open" in line and "facts.db" in line
    assert said[5:] == ["returned torch.Size([3, 4])", "returned None"]


@needs_fork
def test_the_end_of_a_forked_process_touches_nothing(tmp_path):
    """Its interpreter ends in full: nothing is closed that is the parent's."""
    code = f"""
import os, sys, torch
from kanerva_ext.episodic import EpisodicMemory
torch.set_num_threads(1)
memory = EpisodicMemory({S}, {C}, {K}, store=sys.argv[1])
memory.write(torch.ones(3, {S}), torch.ones(3, {C}))
if not os.fork():
    sys.exit(0)
os.wait()
print(sorted(os.listdir(os.path.dirname(sys.argv[1]))))
memory.write(torch.ones(3, {S}), torch.ones(3, {C}))
memory.close()
"""
    path = tmp_path / "facts.db"
    assert run(code, path).strip() == "['facts.db', 'facts.db-wal', 'facts.db.lock']"
    with EpisodicMemory.load(path) as memory:
        assert list(memory) == list(range(6))


OTHER = """
import sys
from kanerva_ext.episodic import EpisodicMemory
try:
    EpisodicMemory.load(sys.argv[1])
except OSError as error:
    print(error)
"""


def another(path):
    """What another process says that loads the file."""
    return run(OTHER, path)


def test_the_lock_is_kept_whatever_else_is_done_with_the_file(tmp_path):
    path = tmp_path / "facts.db"
    memory = make(path)
    memory.write(*facts(3))
    shutil.copy(path, tmp_path / "copy.db")  # closes a descriptor of the file
    with pytest.raises(OSError, match="has it open"):
        EpisodicMemory.load(path)
    with pytest.raises(OSError, match="has it open"):
        make().save(path)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with pytest.raises(OSError, match="has it open"):
        EpisodicMemory.load(link)
    memory.save(tmp_path / "elsewhere.db")
    assert "has it open" in another(path)
    memory.write(*facts(3, seed=1))
    memory.close()
    assert another(path) == ""
    link.unlink()
    assert sorted(os.listdir(tmp_path)) == ["copy.db", "elsewhere.db", "facts.db"]


def test_a_lock_that_a_killed_process_left_is_none(tmp_path):
    path = tmp_path / "facts.db"
    with make(path) as memory:
        memory.write(*facts(3))
    (tmp_path / "facts.db.lock").touch()
    with EpisodicMemory.load(path) as memory:
        assert len(memory) == 3
    assert os.listdir(tmp_path) == ["facts.db"]


def test_paths_stay_what_they_were_given_as(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    memory = make("facts.db")
    memory.write(*facts(3))
    monkeypatch.chdir(tmp_path / "b")
    memory.save("facts.db")
    memory.close()
    for name in ("a", "b"):
        with EpisodicMemory.load(tmp_path / name / "facts.db") as again:
            assert len(again) == 3
