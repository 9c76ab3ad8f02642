"""Settings of the documentation site: ``make docs`` builds it."""

import fastoptim

project, copyright, release = "fastoptim", "the fastoptim authors", fastoptim.__version__
version = release
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the signatures' annotations are long; docstrings state the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # methods stand below their class, written out
default_role = "code"  # docstrings write names in `single backquotes`

# Examples in docstrings use what their module has imported.
doctest_global_setup = """
import numpy as np
import fastoptim as fo
from fastoptim import *
from fastoptim.functional import *
from fastoptim.schedules import *
"""

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # tests/test_guide.py runs the notebook and compares what it prints

html_theme = "pydata_sphinx_theme"
html_title = "fastoptim"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "use_edit_page_button": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "development/changelog": []}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
