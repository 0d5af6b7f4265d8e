"""Every test starts from the same seed, and memory that nobody wrote reads as NaN."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

# For the package benchmarks; last, so that an installed kanerva_ext goes before the checkout's.
sys.path.append(str(Path(__file__).parents[1]))
# A graph compiled by torch.compile for an older schema of an operator must not be found again.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# Threads of several test processes share the cores: one that waits must not keep one busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Deterministic matrix products of cuBLAS, for the references on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import selection
import torch
from checkout import ROOT

import kanerva_ext

pytest_plugins = ["cli_runs", "image_files", "ptx_tool"]


def installed_folders() -> list[Path]:
    """Where the kanerva_ext to test may lie: installed, or built in this checkout."""
    folders = []
    if next((ROOT / "kanerva_ext").glob("_C.*"), None) is not None:
        folders.append(ROOT / "kanerva_ext")
    try:
        found = metadata.distribution("kanerva_ext")
    except metadata.PackageNotFoundError:
        return folders
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return [*folders, Path(unquote(urlparse(origin["url"]).path)) / "kanerva_ext"]
    return [*folders, Path(found.locate_file("kanerva_ext"))]


def pytest_addoption(parser):
    parser.addoption(
        "--whole", action="store_true", help="also what the engine under test cannot afford"
    )


def pytest_configure(config):
    # What is tested is what was installed, whatever else the path leads to.
    tested = Path(kanerva_ext.__file__).resolve().parent
    built = next(tested.glob("_C.*"), None) is not None  # its pip may have left an egg-info there
    if not built or tested not in (folder.resolve() for folder in installed_folders()):
        raise pytest.UsageError(
            f"the tests would run on {tested}, which has no compiled library or is neither "
            f"installed nor this checkout's: pip install . or make develop; expected one of "
            f"{[str(f) for f in installed_folders()]}"
        )
    # The tests of the operators make their tensors there.
    if "KANERVA_TEST_DEVICE" in os.environ:
        torch.set_default_device(os.environ["KANERVA_TEST_DEVICE"])
    # Kernels to test instead of the CPU's own: see scripts/kernels_on_ptx.py.
    if "KANERVA_TEST_LIBRARY" in os.environ:
        torch.ops.load_library(os.environ["KANERVA_TEST_LIBRARY"])
    if "TRITON_INTERPRET" in os.environ:
        import interpreter

        interpreter.patch_language_once()
    torch.set_num_threads(2)
    # Deterministic mode fills the results of torch.empty, in C++ too.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if selection.is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For models too small for more: waiting for a busy core would take longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
