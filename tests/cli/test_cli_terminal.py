"""When something outside goes wrong: one line, a status, no half of a file."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from cli_runs import refused

from kanerva_ext import _files, _terminal, use_backend
from kanerva_ext.cli import _folders, _loop, demo, main

SMALL = {"model.memory_size": 8, "model.code_size": 12, "model.num_filters": 4}
SMALL |= {"data.episode_length": 8, "training.steps": 2}
TRAIN = ["train", "cpu-omniglot-kanerva", "--quiet"]
TRAIN += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
DEMO = ["demo", "--steps", "1", "--memory-size", "8", "--code-size", "12", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def largest_file(size):
    """As if the disk were full: writes beyond ``size`` bytes of a file are OSErrors."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def start(*words, first="", **variables):
    """The command of this package, or of one in the folder ``first``, in a process of its own."""
    path = os.pathsep.join(str(entry) for entry in (first, *sys.path) if entry)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KANERVA_")}
    return subprocess.Popen(
        [sys.executable, "-m", "kanerva_command", *map(str, words)],
        env=environment | {"PYTHONPATH": path} | variables,
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ignored in what a shell starts in the background, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(*words, **variables):
    process = start(*words, **variables)
    out, errors = process.communicate(timeout=300)
    return process.returncode, out, errors


# Terminal


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "kanerva x: interrupted\n"),
        (OSError(errno.ENOSPC, "No space", "a/b"), 2, "kanerva x: a/b: No space\n"),
        (FileNotFoundError("looked for\nx"), 2, "kanerva x: looked for x\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_what_is_no_mistake_of_the_program_is_one_line(error, status, line, capsys):
    def fails():
        raise error

    assert _terminal.run_command("kanerva x", fails) == status
    assert capsys.readouterr().err == line


def test_mistakes_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        _terminal.run_command("kanerva x", lambda: 1 // 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["info"], ["train", "cpu-omniglot-vae", "--show"]])
def test_a_full_standard_output(words, tmp_path):
    """More than Python keeps before it writes, and less."""
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "kanerva_command", *words],
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(e for e in sys.path if e), "PYTHONUNBUFFERED": ""},
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    line = f"kanerva {words[0]}: standard output: No space left on device\n"
    assert (process.returncode, process.stderr) == (2, line)


def test_a_reader_that_leaves_is_no_failure():
    process = start("info", "--json")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


@pytest.mark.parametrize("words", ["info", "--help", "--version", "curves nowhere"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(words, closed, tmp_path):
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.run(
        ["sh", "-c", f'"$0" -m kanerva_command {words} {closed}', sys.executable],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == (2 if "curves" in words else 0), process.stderr
    assert "Traceback" not in process.stderr and process.stderr.count("\n") <= ("curves" in words)


def test_a_training_without_a_standard_output_ends_well(tmp_path):
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.run(
        ["sh", "-c", '"$0" -m kanerva_command "$@" >&-', sys.executable, *TRAIN, "--out", "out"],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert (tmp_path / "out/metrics.json").is_file()


def test_help_names_the_papers(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "The Kanerva Machine: A Generative Distributed Memory (Wu," in said
    assert "Learning Attractor Dynamics for Generative Memory (Wu," in said


# Interrupts


def test_ctrl_c_while_the_package_is_imported(tmp_path):
    """Also where what is imported makes another exception of it."""
    (tmp_path / "kanerva_ext").mkdir()
    (tmp_path / "kanerva_ext/__init__.py").write_text(
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(100)\nexcept KeyboardInterrupt:\n    raise ImportError('broken')\n"
    )
    process = start(*DEMO, first=tmp_path)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "kanerva: interrupted\n")


def test_ctrl_c_removes_the_empty_folder(tmp_path, monkeypatch, capsys):
    """Those that were made, and no others."""

    def interrupted(*_):
        assert (tmp_path / "new/out").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "fit", interrupted)
    assert main([*DEMO, "--out", str(tmp_path / "new/out")]) == 130
    assert capsys.readouterr().err == "kanerva demo: interrupted\n"
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


# Backends


@pytest.mark.parametrize("command", ["demo", "train"])
def test_a_backend_that_is_missing_is_said_at_the_start(command, tmp_path, monkeypatch, capsys):
    from kanerva_ext import _backend

    monkeypatch.setattr(_backend, "default", "cuda")
    monkeypatch.setitem(_backend._status, "cuda", "it was not built")
    words = DEMO if command == "demo" else TRAIN
    said = refused(capsys, *words, "--out", tmp_path / "out")
    assert said == f"kanerva {command}: KANERVA_BACKEND=cuda is not available: it was not built\n"
    assert main(["info"]) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [DEMO, TRAIN])
def test_a_backend_of_other_devices_is_said_at_the_start(words, tmp_path, monkeypatch, capsys):
    from kanerva_ext import _backend

    monkeypatch.setitem(_backend._status, "triton", "available")
    monkeypatch.setattr(_backend, "interpreted", False)
    with use_backend("triton"):
        said = refused(capsys, *words, "--out", tmp_path / "out")
    assert 'KANERVA_BACKEND=triton: backend="triton" serves cuda tensors' in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_backend_that_nobody_knows_is_one_line():
    status, _, errors = run("info", KANERVA_BACKEND="tpu")
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith("kanerva: KANERVA_BACKEND must be one of (") and "'tpu'" in errors


def test_an_empty_backend_is_none():
    status, out, _ = run("info", KANERVA_BACKEND="")
    assert status == 0 and "cpu          available" in out


# Sizes


@pytest.mark.parametrize("option", ["memory-size", "batch-size", "code-size", "threads", "seed"])
@pytest.mark.parametrize("number", [10**20, 2**64])
def test_numbers_that_nothing_can_mean(option, number, tmp_path, capsys):
    words = ["demo", "--out", tmp_path / "out", f"--{option}", number]
    said = refused(capsys, *words)
    assert said.startswith(f"kanerva demo: --{option} must be at most ") and str(number) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.memory_size=99999999999", "[model] memory_size must be at most 2147483647"),
        ("data.batch_size=99999999999", "[data] batch_size must be at most 2147483647"),
        ("data.shortest_episode=9", "shortest_episode must be from 1 to episode_length, 8, got 9"),
        ("data.shortest_episode=0", "shortest_episode must be from 1 to episode_length, 8, got 0"),
        ("data.shortest_episode=5", "episode_length must be divisible into parts of at least"),
        ("training.threads=5000", "[training] threads must be from 1 to 1024, got 5000"),
        (f"training.seed={2**64}", "[training] seed must be at most 9223372036854775807"),
        ("training.learning_rate=inf", "[training] learning_rate must be finite, got inf"),
        ("data.augment=nan", "[data] augment must be finite, got nan"),
        ("model.image_size=32", "takes images (1, 32, 32), those of [data] are (28, 28)"),
        ("model.memory_size=2000000000", "not enough memory for the "),
    ],
)
def test_settings_that_nothing_can_mean(setting, message, tmp_path, capsys):
    said = refused(capsys, *TRAIN, "--out", tmp_path / "out", "--set", setting)
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(_loop.Run, "train", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main([*TRAIN, "--out", str(tmp_path)])


# Folders and files


@pytest.mark.parametrize("words", [DEMO, TRAIN])
def test_out_that_cannot_be_written_to(words, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for out, why in ((file, "must be a folder"), (file / "x", "Not a directory")):
        said = refused(capsys, *words, "--out", out)
        assert said.count("\n") == 1 and "--out" in said and str(out) in said and why in said
    with largest_file(100):
        said = refused(capsys, *words, "--out", tmp_path / "new/out")
    assert said == f"kanerva {words[0]}: --out {tmp_path / 'new/out'}: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_read_only_folder(tmp_path, monkeypatch, capsys):
    def fail(**_):
        raise OSError(errno.EROFS, "Read-only file system", "a name that nobody gave")

    monkeypatch.setattr(_folders.tempfile, "TemporaryFile", fail)
    said = refused(capsys, *DEMO, "--out", tmp_path)
    assert said == f"kanerva demo: --out {tmp_path}: Read-only file system\n"


def test_a_disk_that_fills_up_in_training(tmp_path, monkeypatch, capsys):
    before = _loop.make_folder
    monkeypatch.setattr(_loop, "make_folder", lambda folder, **_: before(folder))
    with largest_file(20_000):
        said = refused(capsys, *TRAIN, "--out", tmp_path)
    assert said == f"kanerva train: {tmp_path / 'checkpoint.safetensors'}: File too large\n"
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "log.txt", "train.csv"}


def test_replacing(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with largest_file(100), pytest.raises(OSError) as caught:
        _files.write_text(path, 1000 * "new")
    assert caught.value.filename == str(path) and path.read_text() == "old"
    _files.write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), _files.replacing(path) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_as_it_is(tmp_path):
    """Such as --json /dev/stdout."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    _files.write_text(link, "text")
    assert link.is_symlink() and target.read_text() == "text"


def test_a_row_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.csv"
    _files.append_text(path, "first\n")
    with largest_file(10), pytest.raises(OSError) as caught:
        _files.append_text(path, "second\n")
    assert caught.value.filename == str(path) and path.read_text() == "first\n"


def test_pictures_are_whole_or_not_there(tmp_path):
    from kanerva_ext import _pictures

    figure = _pictures.new_figure(3, 3)
    figure.subplots().imshow(torch.rand(50, 50).numpy())
    with largest_file(500), pytest.raises(OSError) as caught:
        _pictures.save(figure, tmp_path / "x.png")
    assert caught.value.filename == str(tmp_path / "x.png") and not list(tmp_path.iterdir())
    _pictures.save(figure, tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
