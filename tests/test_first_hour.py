"""The questions of the first hour have their answers in README.md, and the notebook that shows one runs."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "scripts" / "first_question.ipynb"


def test_each_question_of_a_newcomer_has_its_answer_in_the_readme():
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Questions of a newcomer")[2]
    rows = [line.strip("| ").split(" | ") for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    questions = dict(rows[2:])
    assert len(questions) >= 10
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for question, answer in questions.items():
        assert [line for line in lines if line.removeprefix("- ").startswith(answer)], question


@pytest.fixture(scope="module")
def executed(tmp_path_factory, smollm2_gguf):
    """The notebook, run where it stands beside its material."""
    folder = tmp_path_factory.mktemp("first_hour")
    (folder / "scripts").mkdir()
    (folder / ".cache").mkdir()
    (folder / ".cache" / smollm2_gguf.name).symlink_to(smollm2_gguf)
    spec = importlib.util.spec_from_file_location("material", ROOT / "scripts" / "material.py")
    material = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(material)
    try:
        messages = material.fetch_messages(smollm2_gguf.parent)  # kept beside the model, as scripts/material.py does
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the sentences cannot be fetched: {error}")
    shutil.copy(messages, folder / ".cache")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = {**os.environ, "IPYTHONDIR": str(folder / "ipython")}
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder / "scripts")}})
    client.execute(env=environment)
    return notebook


def test_the_notebook_has_at_most_twenty_lines_of_code():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 20


@pytest.mark.slow
@pytest.mark.checkpoint
def test_the_notebook_answers_which_layer_knows_most_about_language(executed):
    shown = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert not [output for output in shown if output.output_type == "error"]
    assert [output for output in shown if "image/png" in output.get("data", {})]
    most = next(output.data["text/plain"] for output in shown if "sd" in output.get("data", {}).get("text/plain", ""))
    assert most.splitlines()[1].split()[1] == "layer.30"  # SmolLM2's answer, whatever the machine
    words = "".join(output.text for output in shown if output.get("name") == "stdout")
    assert "What do layers say of language?" in words


@pytest.mark.slow
@pytest.mark.checkpoint
def test_the_committed_outputs_are_those_of_the_committed_code(executed):
    """Outputs were made by the very cells: the counts agree, and the pictures are there."""
    committed = nbformat.read(NOTEBOOK, as_version=4)
    for ours, theirs in zip(committed.cells, executed.cells, strict=True):
        assert kinds(ours) == kinds(theirs)


def kinds(cell) -> list[list[str]]:
    """The kinds of what a cell shows, without warnings of libraries."""
    return [sorted(output.get("data", {})) for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
