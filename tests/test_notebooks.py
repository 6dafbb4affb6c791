"""The notebooks run from top to bottom, and are stored without outputs."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from project_tree import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")
nbclient = pytest.importorskip("nbclient", reason="needs the notebooks extra")
pytest.importorskip("ipykernel", reason="needs the notebooks extra")
pytest.importorskip("matplotlib", reason="needs the notebooks extra")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path: Path) -> None:
    notebook = _read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, run in a folder of its own: what it writes stays there, and the installed package is used."""
    notebook = _read(request.param)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}},
    )
    client.execute()
    return notebook


def _outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_runs_quietly(executed: Any) -> None:
    complaints = [output.text for output in _outputs(executed) if output.get("name") == "stderr"]
    assert complaints == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_shows_tables_pictures_and_a_verdict(executed: Any) -> None:
    data = [output.data for output in _outputs(executed) if "data" in output]
    assert any("text/html" in item for item in data)
    pictures = [base64.b64decode(item["image/png"]) for item in data if "image/png" in item]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5_000 for picture in pictures)
    assert pictures
    printed = "".join(output.text for output in _outputs(executed) if output.get("name") == "stdout")
    assert any(f"Gate: {outcome}" in printed for outcome in ("PASS", "FAIL", "INCONCLUSIVE"))
