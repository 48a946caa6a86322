"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # envs/ is not installed

project = "fbrl"
author = "fbrl contributors"
copyright = author
release = version = version_of("fbrl")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# what a page about the library documents without what it would take to import it
autodoc_mock_imports = ["numba", "triton"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "fbrl"
html_static_path = ["_static"]
html_css_files = ["fbrl.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "
