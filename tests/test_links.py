"""What the texts outside of the documentation point to is there; Sphinx holds the pages' own links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("agents/*/README.md")])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not target.startswith(("https://", "http://", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_the_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(
        r"`((?:fbrl|envs|experiment|benchmarks|configs|docs|examples|tests|\.ci|\.github)/[\w./*-]*)`", text
    )
    assert len(named) >= 40
    for name in named:
        assert list(ROOT.glob(name.rstrip("/"))), name


def test_the_texts_are_found():
    assert {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RESULTS.md", ROOT / "CHANGELOG.md"} <= set(TEXTS)
