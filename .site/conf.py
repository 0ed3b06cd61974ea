"Sphinx configuration of the site; `build.py` beside it prepares the pages and calls Sphinx"
from configparser import ConfigParser
from pathlib import Path

_settings = ConfigParser(delimiters=["="])
_settings.read(Path(__file__).parent.parent/"settings.ini", encoding="utf-8")
_settings = _settings["DEFAULT"]

project, author, copyright, release = (_settings[k] for k in ("title", "author", "copyright", "version"))
extensions = ["myst_nb"]
nb_render_markdown_format = "gfm"
nb_execution_mode = "off" # pages show what the committed notebooks hold
nb_ipywidgets_js = {} # and load nothing from elsewhere
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_heading_anchors = 4
myst_enable_extensions = []
suppress_warnings = ["myst.header"] # notebooks may begin a section with a heading of any level
html_theme, html_title, html_static_path, html_css_files = "furo", project, ["static"], ["site.css"]
html_theme_options = dict(source_repository=_settings["git_url"], source_branch=_settings["branch"], source_directory="nbs/", navigation_with_keys=True)
html_show_sourcelink, html_copy_source = False, False
pygments_style, pygments_dark_style = "friendly", "native"
