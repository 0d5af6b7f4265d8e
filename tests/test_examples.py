"""The examples run, and show what they say."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


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
    assert names == {"episodic_classifier", "streaming", "variable_length"}


def test_the_classifier_learns(capsys):
    assert example("episodic_classifier").main(["--steps", "80"]) > 0.5
    assert "new characters" in capsys.readouterr().out


def test_padding_changes_nothing(capsys):
    assert example("variable_length").main() < 1e-4
    assert capsys.readouterr().out.count("differs") == 3


def test_a_stream_equals_one_write(capsys):
    assert example("streaming").main() < 1e-4
    assert capsys.readouterr().out.count("after") == 5
