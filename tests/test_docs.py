"""Documentation that is checked: links, anchors and figures resolve, every public name is explained, README stays short,
and the site builds, loads nothing from elsewhere and works in a browser"""

import ast, importlib.util, json, posixpath, re, subprocess, sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import sync_playwright

from conftest import BROWSER, MODULES, NBS, NOTEBOOKS, REPO, code_of, exports, module_of, stem_of

SCREENS, LINE, HEIGHT = (
    2,
    125,
    48,
)  # README in screens of 48 lines of 125 characters; a figure takes half a screen
ADDRESS = r"https://[\w.-]+\.[a-z]+(/[\w./?=#&%~+-]*)?"
CARDS = (
    "share/01_model_card",
    "share/02_hub",
)  # their Markdown outputs are model cards, whose links are of another folder


# Links of README.md, CONTRIBUTING.md, CHANGELOG.md and the notebooks


def cells(path, kind):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def prose(path):
    "The Markdown of a file; of a notebook with its Markdown outputs"
    if path.suffix != ".ipynb":
        return [path.read_text(encoding="utf-8")]
    data = [o.get("data", {}) for c in cells(path, "code") for o in c["outputs"]]
    made = ["".join(d["text/markdown"]) for d in data if "text/markdown" in d]
    return ["".join(c["source"]) for c in cells(path, "markdown")] + (
        [] if path in map(notebook, CARDS) else made
    )


def notebook(stem):
    return NBS / f"{stem}.ipynb"


def tokens(text):
    "What a Markdown text is made of, spans of lines included"
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or []


def links(path):
    "Links of a file outside code: (is an image, target)"
    for token in (t for text in prose(path) for t in tokens(text)):
        if token.type in ("link_open", "image"):
            yield token.type == "image", token.attrs.get("href") or token.attrs["src"]
        if token.type.startswith("html_"):
            for m in re.finditer(r"""\b(src|href)=["']([^"']+)""", token.content):
                yield m[1] == "src", m[2]


def anchors(path):
    "The anchors that GitHub makes of headings; the second of the same words ends in -1"
    seen = Counter()
    for parsed in ([*tokens(text)] for text in prose(path)):
        for opening, inline in zip(parsed, parsed[1:]):
            if opening.type != "heading_open":
                continue
            words = "".join(c.content for c in inline.children if c.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            yield f"{slug}-{seen[slug]}" if seen[slug] else slug
            seen[slug] += 1


def broken(path, root=REPO):
    "Links of a file that lead nowhere, and addresses that are none"
    for image, target in links(path):
        place, _, anchor = unquote(target).partition("#")
        there = (path.parent / place).resolve() if place else path
        if re.match(r"[a-z]+:|//", target):
            good = re.fullmatch(ADDRESS, target) and (not image or BADGE.match(target))
        else:
            good = there.is_relative_to(root) and there.exists() and (not anchor or anchor in anchors(there))
        if not good:
            yield target


BADGE = re.compile(
    r"https://(img\.shields\.io/|github\.com/[\w/.-]+/badge\.svg$)"
)  # the only images from elsewhere


@pytest.mark.parametrize(
    "path", [*(REPO / f"{n}.md" for n in ("README", "CONTRIBUTING", "CHANGELOG")), *NOTEBOOKS], ids=stem_of
)
def test_links_resolve(path):
    assert not [*broken(path)]


def test_broken_links_are_noticed(tmp_path):
    (tmp_path / "b.md").write_text("# One `two`, three\n\n# Same\n\n## Same\n\n```\n# no heading\n```\n")
    (tmp_path / "x.png").touch()
    good = ["b.md", "b.md#one-two-three", "b.md#same-1", "#top", "https://arxiv.org/abs/2208.09684"]
    bad = [
        "c.md",
        "b.md#no-heading",
        "b.md#same-2",
        "#bottom",
        "../..",
        "http://a.b",
        "https://a b",
        "https:/a.b",
    ]
    (tmp_path / "a.md").write_text(
        "\n".join(
            [
                "# Top\n",
                *(f"[two\nlines](<{t}>) ![](x.png)" for t in good + bad),
                '\n`[x](y.md)` [r][r] <a href="d.md">d</a> ![](https://a.b/c.png) ![](https://img.shields.io/d)\n',
                "[r]: e.md\n",
            ]
        )
    )
    found = {unquote(t) for t in broken(tmp_path / "a.md", tmp_path)}
    assert found == {*bad, "d.md", "e.md", "https://a.b/c.png"}


def in_screens(text):
    "Lines of a Markdown text without its figures: those of a paragraph run on, targets of links are not seen"
    flowing = re.sub(r"(?<![|`\n])\n(?![|\n`#*-])", " ", re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text))
    shown = [re.sub(r"\]\([^)]*\)", "]", p) for p in flowing.splitlines() if p.strip()]
    return sum(max(1, -(-len(line) // LINE)) for line in shown)


def test_the_readme_fits_two_screens_and_shows_one_figure():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    images = [t for image, t in links(REPO / "README.md") if image]
    assert [t for t in images if not BADGE.match(t)] == ["figures/figure1.png"]
    assert (
        lines := in_screens(text)
    ) + HEIGHT // 2 <= SCREENS * HEIGHT, f"README.md takes {lines} lines and a figure"
    assert in_screens(text * 2) + HEIGHT > SCREENS * HEIGHT


def test_notebooks_that_the_readme_names_are_run_by_ci():
    named = {t for _, t in links(REPO / "README.md") if t.endswith(".ipynb")}
    assert len(named) > 10 and not [
        n for n in named if Path(n).name.startswith("_")
    ]  # which nbdev_test leaves out
    skipped = r"#\|\s*(eval: false|slow)"
    assert not [
        n for n in named if all(re.search(skipped, "".join(c["source"])) for c in cells(REPO / n, "code"))
    ]


# Every public name is explained


def words(path):
    "Names in the code of a notebook's prose"
    code = [t.content for text in prose(path) for t in tokens(text) if t.type in ("code_inline", "fence")]
    return {n for text in code for n in re.findall(r"\w+", text)}


def defined(tree):
    "Names that a cell defines at its top level"
    values = [s for s in tree.body if isinstance(s, (ast.Assign, ast.AnnAssign))]
    stored = {
        n.id for s in values for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    return stored | {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def used(sources):
    "Names from combcomp that cells use, and names that cells use after another has defined them"
    trees = [ast.parse(s) for s in sources]
    imports = [n for t in trees for n in ast.walk(t) if isinstance(n, ast.ImportFrom)]
    imported = {
        a.asname or a.name for n in imports if (n.module or "").startswith("combcomp") for a in n.names
    }
    known = imported.union(*map(defined, trees))
    loaded = [
        {n.id for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} for t in trees
    ]
    return {name for tree, names in zip(trees, loaded) for name in names & known - defined(tree)}


def public():
    "(module, name) of every public name, as `__all__` lists them"
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                yield from ((module_of(path), name) for name in ast.literal_eval(node.value))


def test_every_public_function_is_used_or_explained_in_a_notebook():
    "By a cell that shows it, by another function, or in words; constants may serve their cell alone"
    trees = [ast.parse(source) for p in NOTEBOOKS for source in code_of(p)]
    named = {
        n.id for t in trees for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    texts = [
        n.value
        for t in trees
        for n in ast.walk(t)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    named |= {
        name for text in texts if "combcomp." in text for name in re.findall(r"\w+", text)
    }  # code named by its path
    shown = named | {name for p in NOTEBOOKS for name in used(code_of(p)) | words(p)}
    functions = [(m, n) for m, n in public() if not n.isupper()]
    assert len(functions) > 200 and not [f"{m}.{n}" for m, n in functions if n not in shown]


def test_names_of_the_package_are_shown_to_its_users():
    "What `combcomp` itself gives is in the tour, a guide, a target or the index, not only in a library notebook"
    import combcomp

    shown = {name for p in NOTEBOOKS if not exports(p) for name in used(code_of(p)) | words(p)}
    assert not {*combcomp.__all__} - shown


def test_used_is_strict():
    cells = [
        "from combcomp.ship.packed_file import pack, unpack\nfrom os import path",
        "def f(): g()\nA = B = 1\nprint(A)",
        "pack(B, f); path",
    ]
    assert used(cells) == {"pack", "f", "B"}


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built: any warning ends the build"
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, REPO / ".site" / "build.py", folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def build():
    "The module .site/build.py"
    spec = importlib.util.spec_from_file_location("build", REPO / ".site" / "build.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


class Page(HTMLParser):
    "What a page refers to, what it loads, what in it can be referred to, and what it says in code"

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids, self.inside, self.code = [], [], set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.add(given["id"])
        if tag in ("pre", "style"):
            self.inside.append(tag)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("search", "next", "prev", "index", "canonical"):
            self.links.append(given["href"])
        elif tag not in ("base", "area"):
            self.loads += [given[a] for a in ("src", "href", "data", "poster", "xlink:href") if given.get(a)]
            self.loads += [s.split()[0] for s in given.get("srcset", "").split(",") if s]
        self.loads += styles(given.get("style", ""))

    def handle_endtag(self, tag):
        if tag in self.inside:
            self.inside.remove(tag)

    def handle_data(self, data):
        if "pre" in self.inside:
            self.code += data
        if "style" in self.inside:
            self.loads += styles(data)


def styles(css):
    return re.findall(r"""(?:url\(|@import)\s*['"]?([^'")\s;]+)""", css)


def elsewhere(target):
    return bool(re.match(r"(?!data:)[a-z]+:|//", target))


@pytest.fixture(scope="module")
def pages(site):
    "Path of a page -> what is in it"
    paths = [p for p in site.rglob("*.html") if "_static" not in p.parts]
    return {p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8")) for p in paths}


def test_the_site_has_every_notebook_and_no_broken_link(site, pages):
    assert {f"{stem_of(p)}.html" for p in NOTEBOOKS} | {"names.html", "search.html"} == {*pages}
    wrong = []
    for name, page in pages.items():
        for target in page.links + page.loads:
            if re.match(r"[a-z]+:|//", target):
                continue
            place, _, anchor = unquote(urlsplit(target)._replace(query="").geturl()).partition("#")
            there = posixpath.normpath(posixpath.join(posixpath.dirname(name), place)) if place else name
            if not (site / there).exists() or anchor and there in pages and anchor not in pages[there].ids:
                wrong.append(f"{name}: {target}")
    assert not wrong and sum(len(p.links) for p in pages.values()) > 1000


def test_the_site_loads_nothing_from_elsewhere(site, pages):
    assert not [(name, l) for name, page in pages.items() for l in page.loads if elsewhere(l)]
    assert not [
        (f.name, u)
        for f in site.rglob("*.css")
        for u in styles(f.read_text(encoding="utf-8"))
        if elsewhere(u)
    ]
    assert min(len(p.loads) for p in pages.values()) > 3


def test_what_a_page_loads_is_seen():
    page = Page(
        '<link rel="stylesheet" href="https://a/1">'
        '<style>@import "https://a/2"; p {background: url(//a/3)}</style>'
        '<p style="background: url(\'https://a/4\')"><img src="a.png" srcset="https://a/5 2x, b.png 1x">'
        '<script src="https://a/6"></script><link rel="preconnect" href="https://a/7"><a href="https://a/8">'
    )
    loaded = [l for l in page.loads if elsewhere(l)]
    assert loaded == ["//a/3" if i == 3 else f"https://a/{i}" for i in range(1, 8)]
    assert page.links == ["https://a/8"]


def test_every_public_name_has_its_place(pages):
    "In the list of names, and at the cell that defines it"
    listed = {*pages["names.html"].links}
    notebooks = {exports(p): stem_of(p) for p in NOTEBOOKS if exports(p)}
    assert not [f"{m}.{n}" for m, n in public() if f"{notebooks[m]}.html#{m}.{n}" not in listed]
    assert (
        "where:str, # what is being read" in pages["names.html"].code
    ), "heads with the comments on their arguments"


def test_pages_are_notebooks_as_readers_want_them(site, pages):
    assert not [name for name, page in pages.items() if re.search(r"^#\|", page.code, re.MULTILINE)]
    assert "def pack(" in pages["ship/02_packed_file.html"].code
    text = lambda name: (site / f"{name}.html").read_text(encoding="utf-8")
    home, formulas, folded = text("index"), text("study/06_reductions"), '<details class="admonition hide'
    assert (
        "figure1.png" in home and "<table" in home and "|---|" not in home and 'href="findings.html"' in home
    )
    assert "<msub>" in formulas and "mathjax" not in formulas.lower().replace("mathjax_ignore", "")
    assert folded in text("findings") and folded not in text("ship/02_packed_file")


def test_directives(build):
    "Hidden cells and stderr are left out, quiet cells show only outputs, links lead to pages or to the repository"
    output = lambda **more: dict(output_type="stream", name="stdout", text="a", **more)
    code = lambda source, *outputs: dict(
        cell_type="code", id="c", metadata={}, source=[source], outputs=list(outputs), execution_count=None
    )
    markdown = lambda source: dict(cell_type="markdown", id="m", metadata={}, source=source)
    text = (
        "[![x](https://img.shields.io/y)](../../LICENSE) ![z](https://img.shields.io/z)\n\n"
        "[a](../c/02_b.ipynb#c) ![d](../../figures/e.png) [f](../../LICENSE) [g](https://h.i) [`j`](#k) "
        "`l[0](../m)`\n\n```\nn[0](../o)\n```"
    )
    exported = "A = B = 1\ndef f(): C = 2\ndef _g(): pass"
    notebook = dict(
        cells=[
            markdown(["# t\n", "\n", text]),
            markdown("# u"),
            code("#| default_exp a.b"),
            code("#| hide\nsecret"),
            code("#| echo: false\nquiet", output()),
            code(f"#| export\n{exported}", output() | dict(name="stderr")),
        ],
        metadata={},
    )
    made = build.page("a/02_b", notebook, "https://r")["cells"]
    linked = (
        text.split("\n\n", 1)[1]
        .replace("../../figures", "../figures")
        .replace("../../LICENSE", "https://r/LICENSE")
    )
    places = "\n".join(f'<div class="name" id="a.b.{n}"></div>' for n in "ABf")
    assert [c["source"] for c in made] == [f"# t\n\n{linked}", "## u", "quiet", places, exported]
    assert made[2]["metadata"]["tags"] == ["remove-input"]
    assert len(made[2]["outputs"]) == 1 and made[4]["outputs"] == []
    with pytest.raises(SystemExit, match="02_b.ipynb: the site does not know the directive output: false"):
        build.page("02_b", dict(cells=[code("#| output: false\n1")]), "")


def test_sections(build):
    stems = "index data/02_b data/01_a tour guides/z run table1 findings spec".split()
    assert {k: v for k, v in build.sections(stems).items() if v} == {
        "Begin here": ["tour", "guides/z"],
        "Results": ["findings", "table1"],
        "Running": ["run"],
        "Library": ["spec"],
        "Library: data": ["data/01_a", "data/02_b"],
    }
    with pytest.raises(SystemExit, match="nbs/stray.ipynb belongs to no section"):
        build.contents(["index", "stray"])


@pytest.mark.skipif(not BROWSER, reason="no chromium, chromium-browser or google-chrome is installed")
def test_the_site_in_a_browser(site):
    "No page asks anyone for anything or is wider than a phone; search finds; dark is dark"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        phone = browser.new_page(viewport=dict(width=390, height=800), color_scheme="dark")
        asked, errors, wide = [], [], []
        phone.on("request", lambda request: asked.append(request.url))
        phone.on("pageerror", lambda error: errors.append(str(error)))
        for path in sorted(p for p in site.rglob("*.html") if "_static" not in p.parts):
            phone.goto(path.as_uri())
            if phone.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                wide.append(path.name)
        assert not wide and not errors
        background = phone.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", background)[:3])) < 64
        phone.goto(f"{site.as_uri()}/search.html?q=entropy")
        phone.wait_for_selector("#search-results li a[href^='ship/']", timeout=20_000)
        browser.close()
    assert len(asked) > 100 and not [url for url in asked if not url.startswith((site.as_uri(), "data:"))]
