"""The notebooks as they are stored: complete, free of traces of the machine, and in step with the package.

They are executed by `make notebooks`.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 400_000
"""Bytes of a notebook; outputs are part of every clone."""

# A path of this machine, a user or host at a prompt, an address in memory.
TRACES = re.compile(r"(?<![\w.:/])/(home|root|Users|tmp|usr|work|opt|mnt|var)/|[A-Z]:\\\\|\w+@\w+:|0x[0-9a-f]{8,}")
SECONDS = re.compile(r"\bseconds\b|\b\d+(\.\d+)? ?(s|ms|min)\b|it/s")

COLAB = '"google.colab" in sys.modules'


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python(notebook: Any) -> ast.Module:
    """All code cells as one module."""
    return ast.parse("\n".join(without_magics(cell.source) for cell in code(notebook)))


def without_magics(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%"))


def shown(notebook: Any) -> Iterator[str]:
    """Every text that a reader of the outputs sees."""
    for cell in code(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def test_there_are_three() -> None:
    assert [path.name for path in PATHS] == [
        "01_compare.ipynb",
        "02_rank_allocation.ipynb",
        "03_write_your_own_method.ipynb",
    ]
    assert all(f"({path.name})" in (FOLDER / "README.md").read_text() for path in PATHS)


def test_format_and_size(path: Path, notebook: Any) -> None:
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(not cell.metadata for cell in notebook.cells)


def test_executed_from_top_to_bottom(notebook: Any) -> None:
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_every_cell_shows_what_it_should(notebook: Any) -> None:
    for cell in code(notebook):
        assert all(output.output_type != "error" for output in cell.outputs)
        assert all(output.get("name") != "stderr" for output in cell.outputs), cell.source
        if _shows_something(cell.source):
            assert cell.outputs, cell.source


def _shows_something(source: str) -> bool:
    """Whether a cell prints, draws or ends in a value."""
    body = ast.parse(without_magics(source)).body
    calls = [node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Call)]
    inside = {id(node) for d in body if isinstance(d, ast.FunctionDef | ast.ClassDef) for node in ast.walk(d)}
    names = {node.func.id for node in calls if isinstance(node.func, ast.Name) and id(node) not in inside}
    value = isinstance(body[-1], ast.Expr) and not (
        isinstance(body[-1].value, ast.Call) and ast.unparse(body[-1].value.func) == "pd.set_option"
    )
    return value or bool(names & {"print", "display", "draw"})


def test_nothing_of_the_machine_is_left(notebook: Any) -> None:
    for text in [*(cell.source for cell in notebook.cells), *shown(notebook)]:
        assert (found := TRACES.search(text)) is None, found
    for text in shown(notebook):
        assert (found := SECONDS.search(text)) is None, found


def test_the_study_is_set_in_the_first_code_cell_alone(notebook: Any) -> None:
    cells = [cell for cell in code(notebook) if COLAB not in cell.source]
    assigning = [i for i, cell in enumerate(cells) if re.search(r"^\s*STUDY\b[^=\n]*=", cell.source, re.M)]
    assert assigning == [0]
    assert "runs/" not in "".join(cell.source for cell in cells[1:])


def test_the_first_cell_installs_on_colab_alone(notebook: Any) -> None:
    first = code(notebook)[0]
    assert not first.outputs
    load, condition = ast.parse(without_magics(first.source)).body
    assert ast.unparse(load) == "import sys"
    assert isinstance(condition, ast.If)
    assert ast.unparse(condition.test) == COLAB.replace('"', "'")
    assert '    %pip install --quiet "peftprune[offline] @ git+{repository}"' in first.source


def test_every_name_of_the_package_exists(notebook: Any) -> None:
    for node in ast.walk(python(notebook)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "peftprune":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and re.fullmatch(r"peftprune(\.\w+)+", ast.unparse(node)):
            _resolve(ast.unparse(node))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for name in re.findall(r"`(peftprune(?:\.\w+)+)", cell.source):
                _resolve(name)


def _resolve(name: str) -> None:
    found: Any = importlib.import_module("peftprune")
    for part in name.split(".")[1:]:
        assert hasattr(found, part), f"{name}: {found!r} has no {part!r}"
        found = getattr(found, part)


def test_links_lead_somewhere(notebook: Any) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert (FOLDER / target).exists(), target


def test_prose_states_no_result(notebook: Any) -> None:
    """Numbers come from cells: prose has none but those in code, in names of files, and in headings of tables."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"`[^`]*`|\([^)]*\)", "", cell.source)
            assert not re.search(r"\d", prose), cell.source
