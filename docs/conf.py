"""Configuration of the documentation, for ``make docs``.

The sources are the Markdown files of ``docs/`` and ``notes/`` as they are, so Sphinx reads from the root of the
repository.
Pages under ``docs/reference/`` and ``docs/gallery/`` are written by the build.
"""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # extensions/, and the experiments that pages link to

project = "gae"
author = "The gae authors"
copyright = "the gae authors, MIT licence"
version = release = installed_version("gae")
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "docs/**.rst",
    "notes/**.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/*.md",
]
exclude_patterns = [".venv", "runs", "build", "dist", "gae", "tests", "experiments", "docs/_build", "docs/examples"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "extensions.mathml",
    "extensions.docstrings",
    "extensions.links",
    "extensions.pages",
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
html_math_renderer = "mathml"

napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_inherit_docstrings = False  # an overridden `forward` would repeat that of torch
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 110
add_module_names = False
toc_object_entries = False  # hundreds of them; each page of the reference begins with a list

sphinx_gallery_conf = {
    "examples_dirs": "docs/examples",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"\.py$",  # all are run
    "within_subsection_order": "extensions.gallery.Curated",
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "write_computation_times": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "remove_config_comments": True,
    "show_signature": False,
    "image_scrapers": ("matplotlib",),
    "reset_modules": ("matplotlib", "extensions.gallery.reset"),
    "capture_repr": (),
    "plot_gallery": "True",
}

html_theme = "furo"
html_title = "gae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#6CB8EE", "color-brand-content": "#6CB8EE"},
}
