"Sphinx configuration of the site; `build.py` beside it prepares the pages and calls Sphinx"
import re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

_settings = ConfigParser(delimiters=["="])
_settings.read(Path(__file__).parent.parent/"settings.ini", encoding="utf-8")
_settings = _settings["DEFAULT"]

project, author, copyright, release = (_settings[k] for k in ("title", "author", "copyright", "version"))
extensions = ["myst_nb"]
nb_render_markdown_format = "myst" # outputs are read as prose is
nb_execution_mode = "off" # pages show what the committed notebooks hold
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "code", "hide code" # of folded cells
nb_ipywidgets_js = {} # and load nothing from elsewhere
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml" # MathJax would come from elsewhere
html_theme, html_title, html_static_path, html_css_files = "furo", project, ["static"], ["site.css"]
html_theme_options = dict(source_view_link=f"{_settings['git_url']}/blob/{_settings['branch']}/nbs/{{filename}}", top_of_page_buttons=["view"], navigation_with_keys=True)
html_show_sourcelink, html_copy_source, html_use_index = False, False, False
pygments_style, pygments_dark_style = "friendly", "github-dark"


def _mathml(writer, node):
    "A formula in the markup that browsers draw without a script"
    block = isinstance(node, nodes.math_block)
    tag, formula = "div" if block else "span", re.sub(r"\\([Bb]igg?)(?![a-z])", r"\\\1l", node.astext()) # docutils knows \Bigl and not \Big
    writer.body.append(f'<{tag} class="math">{tex2mathml(formula, as_block=block)}</{tag}>')
    raise nodes.SkipNode


def _generated(app, name, template, context, doctree):
    "No link to the source of a page that is no notebook"
    if doctree is None or not Path(app.srcdir, f"{name}.ipynb").is_file(): context["page_source_suffix"] = ""


def setup(app):
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    app.connect("html-page-context", _generated)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
