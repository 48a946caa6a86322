"""Who may import whom: in ``fbrl`` and ``experiment`` imports point to lower floors, and no package imports one above.

fbrl <- envs (only what makes MiniGrid symbolic) <- experiment <- benchmarks, and the scripts, which nobody imports.
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "fbrl.memory": 0,
    "fbrl.mission": 0,
    "fbrl.shown": 0,
    "fbrl.arguments": 0,
    "fbrl.spaces": 2,
    "fbrl.cores": 0,  # its __init__ runs before every core, so it imports none of them
    "fbrl.cores.core": 0,
    "fbrl.cores.watch": 0,
    "fbrl.cores.attention": 0,
    "fbrl.cores.graphs": 0,
    "fbrl.value_scale": 1,
    "fbrl.finite": 0,
    "fbrl.novelty": 0,
    "fbrl.figures": 0,
    "fbrl.cores.twin": 1,
    "fbrl.encoders": 1,
    "fbrl.symbolic": 1,
    "fbrl.cores.feedback": 1,
    "fbrl.cores.feedback_forward": 1,
    "fbrl.cores.feedback_once": 2,
    "fbrl.cores.feedback_keys": 3,
    "fbrl.cores.feedback_backward": 2,
    "fbrl.cores.feedback_passes": 2,
    "fbrl.cores.forms": 3,
    "fbrl.cores.compiled_cache": 0,
    "fbrl.cores.compiled_vectors": 0,
    "fbrl.cores.compiled_products": 1,
    "fbrl.cores.compiled_arrays": 2,
    "fbrl.cores.compiled_attention": 2,
    "fbrl.cores.compiled_forward": 3,
    "fbrl.cores.compiled_backward": 4,
    "fbrl.cores.compiled_scan": 5,
    "fbrl.cores.compiled_actor": 6,
    "fbrl.cores.feedback_scan": 7,
    "fbrl.cores.triton_kernels": 0,
    "fbrl.cores.feedback_triton": 2,
    "fbrl.cores.rnn": 2,
    "fbrl.cores.transformer_xl": 2,
    "fbrl.cores.memoryless": 2,
    "fbrl.cores.mingru": 3,
    "fbrl.cores.linear_attention": 3,
    "fbrl.sequences": 3,
    "fbrl.cores.names": 8,
    "fbrl.policy": 8,
    "fbrl.buffer": 8,
    "fbrl.vec_env": 8,
    "fbrl.ppo": 9,
    "fbrl.normalizing": 8,
    "fbrl.evaluation": 11,
    "fbrl.masks": 10,
    "fbrl.insight": 0,
    "fbrl.insight.colours": 0,
    "fbrl.insight.seen": 10,
    "fbrl.insight.recording": 11,
    "fbrl.insight.still": 12,
    "fbrl.insight.story": 12,
    "fbrl.insight.video": 12,
    "fbrl.insight.page": 13,
    "fbrl.insight.tampering": 0,
    "fbrl.insight.probe": 12,
    "fbrl.insight.contamination": 12,
    "fbrl.insight.diagnosis": 13,
    "fbrl.insight.charts": 14,
    "fbrl.export": 10,
    "fbrl.hub": 0,
    "fbrl.hub.agent": 0,
    "fbrl.hub.card": 0,
    "fbrl.hub.transfer": 1,
    "fbrl.hub.__main__": 2,
    "fbrl.zoo.sampler": 0,
    "fbrl.zoo": 10,
    "fbrl.zoo.__main__": 11,
    "fbrl": 11,  # the roof: hands out the public names, and nothing below imports it
    "experiment": 13,
    "experiment.files": 13,
    "experiment.typed": 13,
    "experiment.reading": 14,
    "experiment.episodes": 13,
    "experiment.settings": 14,
    "experiment.rules": 15,
    "experiment.masking": 15,
    "experiment.sizes": 15,
    "experiment.timing": 14,
    "experiment.events": 14,
    "experiment.randomness": 13,
    "experiment.parsing": 16,
    "experiment.distributed": 16,
    "experiment.output": 17,
    "experiment.environments": 17,
    "experiment.runs": 17,
    "experiment.checkpoints": 17,
    "experiment.agents": 18,
    "experiment.unpickled": 17,
    "experiment.saved": 19,
    "experiment.callbacks": 18,
    "experiment.evaluating": 19,
    "experiment.playing": 19,
    "experiment.insight": 20,
    "experiment.diagnosing": 21,
    "experiment.guests": 16,
    "experiment.board": 21,
    "experiment.interrupts": 13,
    "experiment.training": 22,
    "experiment.space": 17,
    "experiment.study": 18,
    "experiment.findings": 19,
    "experiment.trials": 23,
    "experiment.workers": 23,
    "experiment.tuning": 24,
}

# what a package may import of the others, besides itself
ALLOWED = {
    "fbrl": set(),
    "envs": {"fbrl.mission", "fbrl.symbolic"},
    "experiment": {"fbrl", "envs"},
    "benchmarks": {"fbrl", "envs", "experiment"},
    "examples": {"fbrl", "envs"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


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


@pytest.mark.parametrize(("name", "path"), (modules("fbrl") | modules("experiment")).items())
def test_imports_point_to_lower_floors(name, path):
    assert name in FLOORS, f"{name} has no floor: give it a row in FLOORS"
    for imported in imports_of(name, path) & FLOORS.keys():
        assert FLOORS[imported] < FLOORS[name], f"{name} (floor {FLOORS[name]}) imports {imported}"


def test_every_floor_has_its_module():
    assert FLOORS.keys() == (modules("fbrl") | modules("experiment")).keys()


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_only_import_those_below(package):
    everything = SCRIPTS.union(ALLOWED)
    for name, path in modules(package).items():
        for imported in imports_of(name, path):
            if imported.partition(".")[0] in everything - {package}:
                allowed = any(imported == one or imported.startswith(f"{one}.") for one in ALLOWED[package])
                assert allowed, f"{name} imports {imported}"


def test_nobody_imports_a_script():
    for path in sorted(ROOT.rglob("*.py")):
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            assert not top_level(imports(path.read_text(), "")) & SCRIPTS, path


@pytest.mark.parametrize("package", ALLOWED)
def test_there_are_no_circles(package):
    inside = modules(package)
    graph = {name: imports_of(name, path) & inside.keys() - {name} for name, path in inside.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_library_imports_what_it_installs_and_no_more():
    """What an extra brings is imported where it is used, and at the top of the modules that are about it only."""
    installed = {"fbrl", "torch", "numpy", "gymnasium", "stable_baselines3"} | sys.stdlib_module_names
    extras = {
        "fbrl.mission": {"minigrid"},
        "fbrl.symbolic": {"minigrid"},
        "fbrl.masks": {"sb3_contrib"},
        "fbrl.shown": {"minigrid"},
        "fbrl.cores.compiled_cache": {"numba", "llvmlite"},
        "fbrl.cores.compiled_vectors": {"numba", "llvmlite"},
        "fbrl.cores.compiled_products": {"numba", "llvmlite"},
        "fbrl.cores.compiled_attention": {"numba"},
        "fbrl.cores.compiled_forward": {"numba"},
        "fbrl.cores.compiled_backward": {"numba"},
        "fbrl.cores.feedback_triton": {"triton"},
        "fbrl.cores.triton_kernels": {"triton"},
    }
    for name, path in modules("fbrl").items():
        at_top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = set().union(*(top_level(imports(ast.unparse(node), "")) for node in at_top))
        assert found <= installed | extras.get(name, set()), name


def test_the_packages_are_found():
    assert {"fbrl", "fbrl.memory", "fbrl.cores.feedback"} <= modules("fbrl").keys()
    assert {"benchmarks.report", "benchmarks.speed.scan"} <= modules("benchmarks").keys()
    assert {"train_agent", "evaluate_agent", "export_agent"} <= SCRIPTS


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
