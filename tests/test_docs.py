"Documentation that is checked: links, anchors and figures resolve, every public name is explained, README stays short, and the site builds"
import ast, json, re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from conftest import REPO

NOTEBOOKS = sorted((REPO/"nbs").glob("*.ipynb"))
SCREENS, LINE, HEIGHT = 2, 125, 48 # README in screens, of 48 lines of 125 characters; a figure takes half a screen
LINK = re.compile(r"(?<!`)(!?)\[[^\]\n]*\]\(([^)\s]+)\)")


def cells(path, kind): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def prose(path):
    "The Markdown of a file; of a notebook with its Markdown outputs"
    if path.suffix != ".ipynb": return path.read_text(encoding="utf-8")
    made = ["".join(o["data"]["text/markdown"]) for c in cells(path, "code") for o in c["outputs"] if "text/markdown" in o.get("data", {})]
    return "\n\n".join(["".join(c["source"]) for c in cells(path, "markdown")] + ([] if path.stem == "22_hub" else made)) # there the output is a model card, of another folder


def anchors(path):
    "The anchors that GitHub makes of headings"
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)}


def links(path):
    "Links of a file outside code: (is an image, target)"
    text = re.sub(r"```.*?```|`[^`\n]*`", "", prose(path), flags=re.DOTALL)
    return [(bool(m[1]), m[2]) for m in LINK.finditer(text)]


@pytest.mark.parametrize("path", [REPO/"README.md", REPO/"CONTRIBUTING.md", *NOTEBOOKS], ids=lambda p: p.stem)
def test_links_resolve(path):
    for image, target in links(path):
        if re.match(r"https?://", target): assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./?=#&%~+-]*)?", target), target; continue
        place, _, anchor = unquote(target).partition("#")
        there = (path.parent/place).resolve() if place else path
        assert there.is_relative_to(REPO) and there.exists(), f"{path.name}: {target}"
        if anchor: assert anchor in anchors(there), f"{path.name}: {target} has no such heading"


def test_the_links_that_are_found():
    "The check sees something: images, pages and the web"
    found = links(REPO/"README.md")
    assert (True, "figures/figure1.png") in found and any(t.startswith("https://") for _, t in found) and sum(t.startswith("nbs/") for _, t in found) > 10


def test_the_readme_fits_two_screens_and_shows_one_figure():
    text = (REPO/"README.md").read_text(encoding="utf-8")
    assert [t for image, t in links(REPO/"README.md") if image] == ["figures/figure1.png"] and "<img" not in text
    lines = sum(max(1, -(-len(re.sub(r"\]\([^)]*\)", "]", p))//LINE)) for p in re.sub(r"(?<![|`\n])\n(?![|\n`#*-])", " ", text).splitlines() if p.strip())
    assert lines + HEIGHT//2 <= SCREENS*HEIGHT, f"README.md takes {lines} lines and a figure"


def test_notebooks_that_the_readme_names_are_run_by_ci():
    named = {t.removeprefix("nbs/") for _, t in links(REPO/"README.md") if t.endswith(".ipynb")}
    assert named <= {p.name for p in NOTEBOOKS} and not any(n.startswith("_") for n in named)
    for name in named: assert any("#| eval: false" not in "".join(c["source"]) for c in cells(REPO/"nbs"/name, "code")), name


def public():
    "Every public name of every module, functions and classes"
    for module in sorted((REPO/"combcomp").glob("[a-z]*.py")):
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"): yield module.stem, node.name


def test_every_public_name_is_shown_in_a_notebook():
    "Used in a cell that does not define it, or explained in prose"
    shown = "\n".join("\n".join("".join(c["source"]) for c in cells(p, "code") if "#| export" not in "".join(c["source"])) + prose(p) for p in NOTEBOOKS)
    missing = [f"{m}.{n}" for m, n in public() if not re.search(rf"\b{n}\b", shown)]
    assert not missing, missing
    assert len([*public()]) > 200


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built"
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, REPO/".site"/"build.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder/"html"


class Page(HTMLParser):
    "What a page refers to, and what in it can be referred to"
    def __init__(self, path): super().__init__(); self.links, self.loads, self.ids = [], [], set(); self.feed(path.read_text(encoding="utf-8"))
    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given: self.ids.add(given["id"])
        if tag == "a" and "href" in given: self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in given or tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"): self.loads.append(given.get("src") or given["href"])


def test_the_site_has_every_notebook_and_no_broken_link(site):
    pages = {p.name: Page(p) for p in site.glob("*.html")}
    assert {f"{p.stem}.html" for p in NOTEBOOKS} <= {*pages} and "names.html" in pages
    for name, page in pages.items():
        for target in page.links:
            place, _, anchor = unquote(target).partition("#")
            if re.match(r"[a-z]+:", place): continue
            assert not place or (site/place).exists(), f"{name}: {target}"
            if anchor and (place or name) in pages: assert anchor in pages[place or name].ids, f"{name}: {target}"


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = [Page(p) for p in site.glob("*.html")]
    assert sum(len(p.loads) for p in pages) > 50
    assert not [l for p in pages for l in p.loads if re.match(r"[a-z]+:|//", l) and not l.startswith("data:")]
    assert not [f.name for f in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//|@import ['\"]?http", f.read_text(encoding="utf-8"))]


def test_the_site_shows_notebooks_without_directives(site):
    text = (site/"05_prune.html").read_text(encoding="utf-8")
    assert "default_exp" not in text and "#| export" not in text and "def</span>" in text and "data:image/png" not in text or "_images" in text
    home = (site/"index.html").read_text(encoding="utf-8")
    assert "figure1.png" in home and "<table" in home and "|---|" not in home


def test_a_notebook_without_a_section_ends_the_build():
    code = f"import sys; sys.path.insert(0, {str(REPO/'.site')!r})\nimport build; build.contents(['index', 'stray'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "nbs/stray.ipynb belongs to no section" in done.stderr
