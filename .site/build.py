"""A site from the notebooks as they are committed: python .site/build.py [folder], by default _docs

Nothing is executed. Pages are copies of the notebooks in nbs/ and its folders without the directives of nbdev. Navigation
follows from their paths; a notebook that belongs to no section ends the build.
"""
import ast, html, json, posixpath, re, shutil, subprocess, sys
from configparser import ConfigParser
from fnmatch import filter as fitting
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = "data models compress ship study share".split()
# Section -> patterns of notebooks, without nbs/ and .ipynb; a notebook is in the first section that fits
SECTIONS = {
    "Begin here": ["tour", "guides/*"],
    "Results": ["findings", "table1", "figure1", "glue", "speed", "ablations", "recipe", "explore"],
    "Running": ["run", "grid", "smallest", "zoo"],
    "Library": ["basics", "spec", "cli"],
    **{f"Library: {room}": [f"{room}/*"] for room in ROOMS},
}
DIRECTIVES = "default_exp .*|exports?|hide|slow|(echo|eval): false" # others end the build: the site does not obey them
BADGES = r"^(\[?!\[[^\]]*\]\(https://[^)]*\)(\]\([^)]*\))? *)+$\n*" # lines of images from elsewhere, for README alone
LINK = r"""(\]\(|(?:src|href)=["'])([^\s)"']+)"""


def settings():
    "The project's settings, as strings"
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def sections(stems):
    "Section -> its notebooks, in order; those that fit nowhere end the build"
    left, every = sorted({*stems} - {"index"}), {}
    for name, patterns in SECTIONS.items():
        every[name] = [s for pattern in patterns for s in fitting(left, pattern)]
        left = [s for s in left if s not in every[name]]
    if left:
        sys.exit("\n".join(f"nbs/{s}.ipynb belongs to no section of the site; see SECTIONS in {HERE.name}/build.py"
                           for s in left))
    return every


def relinked(text, repository, folder=""):
    """Links of a notebook in nbs/<folder> as links of a page.

    Figures are next to the pages, Sphinx resolves links to notebooks, and everything else is a link to the repository.
    """
    def link(m):
        target, mark, anchor = m[2].partition("#")
        path = posixpath.normpath(posixpath.join("nbs", folder, target))
        if re.match(r"[a-z]+:", m[2]) or not target or path.startswith("nbs/") and path.endswith(".ipynb"):
            return m[0]
        if path.startswith("figures/"):
            return m[1] + posixpath.relpath(path, folder or ".")
        return f"{m[1]}{repository}/{path}{mark}{anchor}"
    # every other part is code, in which a[0](b) is no link
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(p if i % 2 else re.sub(LINK, link, p) for i, p in enumerate(parts))


def defined(source):
    "Public names that a cell gives to the library"
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [v.id for t in targets for v in ast.walk(t) if isinstance(v, ast.Name)]
    return [name for name in found if not name.startswith("_")]


def module_of(notebook):
    "The module that a notebook exports, as data.tasks; nothing for one that exports none"
    code = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    found = re.search(r"^#\| default_exp ([\w.]+)", code, re.MULTILINE)
    return found and found[1]


def page(stem, notebook, repository, folded=False):
    "A notebook as a page: hidden cells and directives are left out, and each public name has an anchor"
    cells, module, folder = [], module_of(notebook), posixpath.dirname(stem)

    def words(cell, text):
        return dict(cell_type="markdown", id=f"{cell['id']}-", metadata={}, source=text)

    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        options = re.findall(r"^#\|\s*(.*?)\s*$", source, re.MULTILINE)
        if unknown := [o for o in options if not re.fullmatch(DIRECTIVES, o)]:
            sys.exit(f"nbs/{stem}.ipynb: the site does not know the directive {unknown[0]}; "
                     f"see DIRECTIVES in {HERE.name}/build.py")
        source = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip()
        if "hide" in options or not source:
            continue
        if cell["cell_type"] == "markdown":
            text = re.sub(BADGES, "", source, flags=re.MULTILINE)
            text = re.sub("^# ", "## ", text) if cells else text
            cells.append(words(cell, relinked(text, repository, folder)))
            continue
        if {"export", "exports"} & {*options} and (names := defined(source)):
            cells.append(words(cell, "\n".join(f'<div class="name" id="{module}.{n}"></div>' for n in names)))
        outputs = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for o in outputs:
            if "text/markdown" in o.get("data", {}):
                o["data"]["text/markdown"] = relinked("".join(o["data"]["text/markdown"]), repository, folder)
        tags = ["remove-input"] if "echo: false" in options else ["hide-input"] if folded else []
        cells.append(dict(cell, source=source, outputs=outputs, metadata=dict(tags=tags)))
    return dict(notebook, cells=cells)


def contents(stems):
    "Markdown of the navigation"
    every = sections(stems)
    every["Library"] = [*every["Library"], "names"]
    return "\n\n".join(f"```{{toctree}}\n:hidden:\n:caption: {name}\n\n" + "\n".join(inside) + "\n```"
                       for name, inside in every.items() if inside)


def assigned(tree, name):
    "The value of a module's constant, as it is written; nothing if there is none"
    return next((n.value for n in tree.body
                 if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == name), None)


def entry(module, stem, node, lines):
    "HTML of a public function or class: its name, its docstring, and its head with the comments on its arguments"
    def first(node):
        return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    inner = node.body[0]
    if isinstance(node, ast.ClassDef):
        inner = next((n for n in node.body if isinstance(n, ast.FunctionDef)), None)
    last = first(inner) - 1 if inner else node.end_lineno
    head = "\n".join(l for l in lines[first(node) - 1:max(last, first(node))] if l.strip())
    docstring = html.escape((ast.get_docstring(node) or "").split("\n")[0], quote=False)
    docstring = re.sub(r"`([^`]+)`", r"<code>\1</code>", docstring)
    link = f'<a href="{stem}.html#{module}.{node.name}"><code>{node.name}</code></a>'
    return f"<details><summary>{link} {docstring}</summary><pre>{html.escape(head)}</pre></details>"


def names(where):
    "Markdown of a page with every public name; `where` is module -> notebook"
    sys.path.insert(0, str(ROOT))
    from combcomp import NAMES # loads nothing else

    def link(module, name):
        return f'<a href="{where[module]}.html#{module}.{name}"><code>{name}</code></a>'

    parts = ["# names",
             "> Every public name of the library: what it does, where it is explained and tested; "
             "open one to see what it takes and returns",
             "## combcomp",
             "From `combcomp` itself: " + ", ".join(link(module, name) for name, module in NAMES.items()) + "."]
    for module, stem in where.items():
        text = (ROOT/"combcomp"/f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        public = ast.literal_eval(assigned(tree, "__all__"))
        nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public}
        entries = "\n".join(entry(module, stem, n, lines) for n in nodes.values())
        parts += [f"## {module}", f"[{stem}]({stem}.ipynb)", entries]
        if values := [link(module, n) for n in public if n not in nodes]:
            parts.append("Constants: " + ", ".join(values))
    return "\n\n".join(parts) + "\n"


def staged(folder):
    "Write the pages; the folder"
    cfg = settings()
    repository = f"{cfg['git_url']}/blob/{cfg['branch']}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(ROOT/"figures", folder/"figures")
    paths = [p for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    notebooks = {p.relative_to(ROOT/"nbs").with_suffix("").as_posix(): json.loads(p.read_text(encoding="utf-8"))
                 for p in paths}
    navigation, every = contents(notebooks), sections(notebooks)
    for stem, notebook in notebooks.items():
        made = page(stem, notebook, repository, folded=stem in every["Results"])
        if stem == "index":
            made["cells"].append(dict(cell_type="markdown", id="navigation", metadata={}, source=navigation))
        (folder/stem).parent.mkdir(exist_ok=True)
        (folder/f"{stem}.ipynb").write_text(json.dumps(made), encoding="utf-8")
    order = [stem for inside in every.values() for stem in inside]
    where = {module: stem for stem in order if (module := module_of(notebooks[stem]))}
    (folder/"names.md").write_text(names(where), encoding="utf-8")
    return folder


def main(target=ROOT/"_docs"):
    target = Path(target).resolve()
    pages = staged(target/"pages")
    for old in ("html", "doctrees"): # pages of notebooks that are no more
        shutil.rmtree(target/old, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2", "-c", HERE,
               "-d", target/"doctrees", pages, target/"html"]
    done = subprocess.run([str(part) for part in command])
    if done.returncode:
        sys.exit(done.returncode)
    (target/"html"/".nojekyll").touch() # folders that begin with _ are part of it
    count = len([*(target/"html").rglob("*.html")])
    print(f"{count} pages, begin with {target/'html'/'index.html'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
