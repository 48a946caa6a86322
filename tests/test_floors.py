"""Imports inside ``fbrl`` only point to lower floors, and ``fbrl`` and ``envs`` never import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "fbrl.memory": 0,
    "fbrl.timing": 0,
    "fbrl.cores": 0,  # its __init__ runs before every core, so it imports none of them
    "fbrl.cores.core": 0,
    "fbrl.cores.feedback": 1,
    "fbrl.cores.rnn": 1,
    "fbrl.cores.memoryless": 1,
    "fbrl.encoders": 1,
    "fbrl.cores.feedback_forward": 1,
    "fbrl.cores.feedback_passes": 2,
    "fbrl.cores.feedback_backward": 2,
    "fbrl.cores.feedback_scan": 3,
    "fbrl.cores.triton_kernels": 0,
    "fbrl.cores.feedback_triton": 4,
    "fbrl.cores.transformer_xl": 3,
    "fbrl.cores.names": 4,
    "fbrl.policy": 4,
    "fbrl.buffer": 5,
    "fbrl.vec_env": 5,
    "fbrl.ppo": 6,
    "fbrl.settings": 7,
    "fbrl.evaluation": 7,
    "fbrl.video": 7,
    "fbrl.distributed": 8,
    "fbrl.runs": 9,
    "fbrl.callbacks": 10,
    "fbrl": 11,  # the roof: hands out the public names, and nothing below imports it
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: str) -> dict[str, Path]:
    return {module_name(path): path for path in sorted((ROOT / package).rglob("*.py"))}


def imports(source: str, package: str) -> set[str]:
    """Every module that ``source`` names in an import, wherever it stands; ``package`` resolves relative ones."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}  # a module or a name in one
    return found


def imports_of(name: str, path: Path) -> set[str]:
    return imports(path.read_text(), name if path.name == "__init__.py" else name.rpartition(".")[0])


def top_level(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(("name", "path"), modules("fbrl").items())
def test_imports_point_to_lower_floors(name, path):
    assert name in FLOORS, f"{name} has no floor: give it a row in FLOORS"
    for imported in imports_of(name, path) & modules("fbrl").keys():
        assert FLOORS[imported] < FLOORS[name], f"{name} (floor {FLOORS[name]}) imports {imported}"


@pytest.mark.parametrize(("package", "other"), [("fbrl", "envs"), ("envs", "fbrl")])
def test_library_and_tasks_do_not_import_each_other(package, other):
    offenders = [name for name, path in modules(package).items() if other in top_level(imports_of(name, path))]
    assert offenders == []


def test_the_packages_are_found():
    assert {"fbrl", "fbrl.memory", "fbrl.cores.feedback"} <= modules("fbrl").keys()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import fbrl.ppo", {"fbrl.ppo"}),
        ("from ..ppo import MemoryPPO", {"fbrl.ppo", "fbrl.ppo.MemoryPPO"}),
        ("def f():\n    import envs", {"envs"}),
    ],
)
def test_no_import_is_missed(source, expected):
    assert imports(source, package="fbrl.cores") == expected
