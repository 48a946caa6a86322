"""One version: ``fbrl.__version__``, which setup.cfg reads and CITATION.cff repeats."""

import configparser
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
