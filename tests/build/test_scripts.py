"""The scripts refuse in one line what they cannot do."""

import os
import subprocess
import sys

import pytest
from checkout import ROOT

SCRIPTS = ROOT / "scripts"


def start(name, *words, options=()):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *options, str(SCRIPTS / f"{name}.py"), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2.9.0"], "kanerva_ext needs PyTorch 2.11 or later, got 2.9.0"),
        (["2.11.0", "--headers", "2.10.1"], "needs PyTorch 2.11 or later, got 2.10.1"),
        (["newest"], "versions are numbers such as 2.11.0, got ['newest']"),
        (["2.11.0", "--python", "/nowhere"], "--python /nowhere: No such file or directory"),
        (["2.11.0", "--python", "false"], "--python false is no Python with venv and ensurepip"),
        (["2.11.0", "--keep", __file__], f"--keep {__file__}: File exists"),
    ],
)
def test_check_torch_refuses(words, message):
    status, errors = start("check_torch", *words)
    assert status == 2 and "Traceback" not in errors
    assert message in errors.splitlines()[-1]


@pytest.mark.parametrize("arch", ["nonsense", "7.0"])
def test_check_torch_refuses_architectures(arch, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_torch

    nvcc = check_torch.plan.Nvcc("nvcc", "13.0", ("80", "90"))
    monkeypatch.setattr(check_torch.probe, "find_nvcc", lambda: nvcc)
    with pytest.raises(SystemExit) as stopped:
        check_torch.main(["2.11.0", "--arch", arch])
    assert stopped.value.code == 2 and f"--arch {arch}: " in capsys.readouterr().err


def test_check_torch_says_what_pip_does_not_find(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_torch

    pip = tmp_path / "bin/python"
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\necho chatter\necho 'ERROR: No matching distribution'\nexit 1\n")
    pip.chmod(0o755)
    environment = check_torch.Environment("9.9.9", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        environment.pip("install", "torch==9.9.9")
    line = "check_torch: PyTorch 9.9.9: ERROR: No matching distribution"
    assert str(stopped.value) == line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pack_omniglot", []),
        ("torch_probe", []),
        ("triton_report", []),
        ("check_dist", []),
        ("ptx_counts", ["--library", __file__, "--shape", "1x2x3x4"]),
    ],
)
def test_missing_packages_are_named(name, words):
    """-S: without those of the environment."""
    status, errors = start(name, *words, options=["-S"])
    assert status == 1 and errors.count("\n") == 1
    assert errors.startswith(f"{name}: ") and "pip install" in errors
