"""No file over 300 lines nor a function over 60 without a reason: "Over 60 lines ..." in its docstring.

The files of tests mirror those that they test, and are as long as that takes.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE, FUNCTION = 300, 60
SHIPPED = sorted(
    path
    for path in [
        *ROOT.glob("*.py"),
        *(
            p
            for part in ("fbrl", "envs", "experiment", "benchmarks", "examples", "docs")
            for p in (ROOT / part).rglob("*.py")
        ),
    ]
)


def too_long(source: str) -> Iterator[str]:
    """The file, where it is too long for its docstring, and the functions that are for theirs."""
    tree = ast.parse(source)
    if len(source.splitlines()) > FILE and f"Over {FILE} lines" not in (ast.get_docstring(tree) or ""):
        yield f"the file has {len(source.splitlines())} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION and f"Over {FUNCTION} lines" not in (ast.get_docstring(node) or ""):
                yield f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_long_without_a_reason(path):
    assert not list(too_long(path.read_text()))


def test_what_is_long_is_found():
    body = "    x = 1\n"
    assert list(too_long("def f():\n" + body * FUNCTION)) == [f"f has {FUNCTION + 1} lines"]
    assert not list(too_long("def f():\n" + body * (FUNCTION - 1)))
    assert not list(too_long('def f():\n    """Over 60 lines: a reason."""\n' + body * FUNCTION))
    assert list(too_long("x = 1\n" * (FILE + 1))) == [f"the file has {FILE + 1} lines"]
    assert not list(too_long('"""Over 300 lines: a reason."""\n' + "x = 1\n" * FILE))


def test_the_files_are_found():
    assert {ROOT / "train_agent.py", ROOT / "fbrl" / "ppo.py", ROOT / "examples" / "own_core.py"} <= set(SHIPPED)
