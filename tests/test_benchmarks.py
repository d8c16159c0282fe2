"""The benchmarks, which take too long to be run as tests: that what they import is still there."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_of_vankit_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(name), names=names) if name.split(".")[0] == "vankit":
                assert [each.name for each in names if not hasattr(import_module(name), each.name)] == []
            case ast.Import(names=names):
                for each in names:
                    assert not each.name.startswith("vankit") or import_module(each.name)
