"""One version, ``fbrl.__version__``, which setup.cfg reads and CITATION.cff repeats; the oldest versions of others."""

import configparser
import re
from importlib.metadata import version
from pathlib import Path

import yaml

import fbrl

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_installed_one():
    assert fbrl.__version__ == version("fbrl")


def test_setup_cfg_reads_the_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: fbrl.__version__"


def test_citation_names_version_and_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fbrl.__version__
    assert citation["authors"] == [{"name": "fbrl contributors"}]
    assert citation["references"][0]["authors"][0]["family-names"] == "Fan"


def test_the_oldest_versions_are_those_of_setup_cfg():
    """constraints-oldest.txt pins the lower bound of all that the tests take; they do not run the tools."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    asked = [setup["options"]["install_requires"], *(extras[name] for name in ("minigrid", "train", "compiled"))]
    asked += [extras[name] for name in ("popgym", "hub", "diagnose", "tune", "dev")]
    bounds = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(asked), flags=re.MULTILINE))
    tools = {"mypy", "pre-commit", "ruff", "types-PyYAML"}
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-oldest.txt").read_text(), flags=re.MULTILINE))
    assert pins.pop("pyparsing")  # matplotlib asks for it
    assert pins.keys() == bounds.keys() - tools
    for name, pin in pins.items():
        assert tuple(map(int, pin.split("."))) == _padded(bounds[name], pin), name


def _padded(version: str, like: str) -> tuple[int, ...]:
    """``version`` with as many numbers as ``like``: 2.8 like 2.8.0 is (2, 8, 0)."""
    parts = version.split(".")
    return tuple(map(int, parts + ["0"] * (like.count(".") + 1 - len(parts))))
