"""README.md is short, and what it names is there; its Python runs with the documentation's (``conftest.py``)."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_it_is_read_in_three_minutes():
    assert len(TEXT.splitlines()) <= 150


def test_links_work_on_a_package_page():
    """Only pictures are given by a path inside the repository."""
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert len(links) >= 3
    for picture, target in links:
        assert target.startswith("https://") or (picture and (ROOT / target).is_file()), target


def test_the_files_it_names_are_there():
    named = re.findall(r"`((?:\w+/)+[\w.]*|\w+\.(?:md|cff|py))`", TEXT)
    assert len(named) >= 8
    made = {"docs/_build/html"}
    for name in set(named) - made:
        assert (ROOT / name).exists(), name


def test_the_commands_are_in_the_makefile():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    commands = re.findall(r"\bmake ([a-z-]+)\b(?! the)", TEXT)
    assert {"train", "test", "docs"} <= set(commands) <= set(targets)
