"""The notebooks of the manual run. `make docs` asks for it; make test leaves it out."""

import pytest
from checkout import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_run(path, tmp_path):
    for package in ("ipykernel", "nbclient", "nbformat", "matplotlib", "safetensors"):
        pytest.importorskip(package)
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    assert all(cell.outputs or cell.execution_count for cell in notebook.cells if "outputs" in cell)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
