"""A site from the notebooks as they are committed: python .site/build.py [folder], by default _docs

Nothing is executed. Pages are copies of nbs/*.ipynb without the directives of nbdev; navigation follows from file names, and
a notebook that belongs to no section ends the build.
"""
import ast, html, json, posixpath, re, shutil, subprocess, sys
from configparser import ConfigParser
from fnmatch import filter as fitting
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECTIONS = {"Begin here": ["00_tour", "guide_*"], "Results": ["findings", "table1", "figure1", "speed", "ablations", "recipe", "explore"],
            "Running": ["run", "grid"], "Library": ["[0-9][0-9]_*"]} # in this order; a notebook is in the first that fits
DIRECTIVES = "default_exp .*|exports?|hide|slow|(echo|eval): false" # others would have to be obeyed too: they end the build


def settings():
    "The project's settings, as strings"
    config = ConfigParser(delimiters=["="]); config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def sections(stems):
    "Section -> its notebooks, in order; those that fit nowhere end the build"
    left, every = sorted({*stems} - {"index"}), {}
    for name, patterns in SECTIONS.items():
        every[name] = [s for pattern in patterns for s in fitting(left, pattern)]
        left = [s for s in left if s not in every[name]]
    if left: sys.exit("\n".join(f"nbs/{s}.ipynb belongs to no section of the site; see SECTIONS in {HERE.name}/build.py" for s in left))
    return every


def relinked(text, repository):
    "Links of a notebook as links of a page: figures beside it, what is no page in the repository; those to notebooks Sphinx resolves"
    def link(m):
        target, mark, anchor = m[2].partition("#")
        if re.match(r"[a-z]+:", m[2]) or not target or re.fullmatch(r"[\w.]+\.ipynb", target): return m[0]
        path = posixpath.normpath("nbs/" + target)
        return m[1] + (path if path.startswith("figures/") else f"{repository}/{path}{mark}{anchor}")
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE) # every other one is code, in which a[0](b) is no link
    return "".join(p if i % 2 else re.sub(r"""(\]\(|(?:src|href)=["'])([^\s)"']+)""", link, p) for i, p in enumerate(parts))


def defined(source):
    "Public names that a cell gives to the library"
    targets = lambda n: [n.target] if isinstance(n, ast.AnnAssign) else n.targets if isinstance(n, ast.Assign) else []
    found = [name for n in ast.parse(source).body for name in ([n.name] if isinstance(n, (ast.FunctionDef, ast.ClassDef)) else [v.id for t in targets(n) for v in ast.walk(t) if isinstance(v, ast.Name)])]
    return [name for name in found if not name.startswith("_")]


def page(stem, notebook, repository, folded=False):
    "A notebook as a page: what nbdev hides is hidden, its directives are not shown, and each public name has an anchor"
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        options = re.findall(r"^#\|\s*(.*?)\s*$", source, re.MULTILINE)
        if strange := [o for o in options if not re.fullmatch(DIRECTIVES, o)]: sys.exit(f"nbs/{stem}.ipynb: the site does not know the directive {strange[0]}; see DIRECTIVES in {HERE.name}/build.py")
        source = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip()
        if "hide" in options or not source: continue
        words = lambda text: dict(cell_type="markdown", id=f"{cell['id']}-", metadata={}, source=text)
        if cell["cell_type"] == "markdown": cells.append(words(relinked(re.sub("^# ", "## ", source) if cells else source, repository))); continue
        if {"export", "exports"} & {*options} and (names := defined(source)): cells.append(words("\n".join(f'<div class="name" id="{stem[3:]}.{n}"></div>' for n in names)))
        outputs = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for o in outputs:
            if "text/markdown" in o.get("data", {}): o["data"]["text/markdown"] = relinked("".join(o["data"]["text/markdown"]), repository)
        tags = ["remove-input"] if "echo: false" in options else ["hide-input"] if folded else []
        cells.append(dict(cell, source=source, outputs=outputs, metadata=dict(tags=tags)))
    return dict(notebook, cells=cells)


def contents(stems):
    "Markdown of the navigation; modules with their numbers, since a notebook that runs something may have the same name"
    every = sections(stems)
    pages = {name: [f"{s[:2]} {s[3:]} <{s}>" if name == "Library" else s for s in inside] + ["names"]*(name == "Library") for name, inside in every.items()}
    return "\n\n".join(f"```{{toctree}}\n:hidden:\n:caption: {name}\n\n" + "\n".join(inside) + "\n```" for name, inside in pages.items())


def assigned(tree, name):
    "The value of a module's constant, as it is written; nothing if there is none"
    return next((n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == name), None)


def entry(module, stem, node, lines):
    "HTML of a public function or class: its name, its docstring, and its head as written, with the comments on its arguments"
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    inner = next((n for n in node.body if isinstance(n, ast.FunctionDef)), None) if isinstance(node, ast.ClassDef) else node.body[0]
    last = min([inner.lineno, *(d.lineno for d in getattr(inner, "decorator_list", []))]) - 1 if inner else node.end_lineno
    head = "\n".join(l for l in lines[first - 1:max(last, first)] if l.strip())
    said = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape((ast.get_docstring(node) or "").split("\n")[0], quote=False))
    return f'<details><summary><a href="{stem}.html#{module}.{node.name}"><code>{node.name}</code></a> {said}</summary><pre>{html.escape(head)}</pre></details>'


def names():
    "Markdown of a page with every public name: where it is explained, what it does, what it takes and returns"
    sys.path.insert(0, str(ROOT))
    from combcomp import _NAMES # loads nothing else
    where = {}
    for path in sorted((ROOT/"nbs").glob("[0-9][0-9]_*.ipynb")):
        if (ROOT/"combcomp"/f"{path.stem[3:]}.py").is_file(): where[path.stem[3:]] = path.stem
    link = lambda module, name: f'<a href="{where[module]}.html#{module}.{name}"><code>{name}</code></a>'
    parts = ["# names", "> Every public name of the library: what it does, where it is explained and tested; open one to see what it takes and returns",
             "## combcomp", "From `combcomp` itself: " + ", ".join(link(module, name) for name, module in _NAMES.items()) + "."]
    for module, stem in where.items():
        text = (ROOT/"combcomp"/f"{module}.py").read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        public = ast.literal_eval(assigned(tree, "__all__"))
        nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in public}
        parts += [f"## {module}", f"[{stem}]({stem}.ipynb)", "\n".join(entry(module, stem, n, lines) for n in nodes.values())]
        if values := [link(module, n) for n in public if n not in nodes]: parts.append("Constants: " + ", ".join(values))
    return "\n\n".join(parts) + "\n"


def staged(folder):
    "Write the pages; the folder"
    cfg = settings()
    repository = f"{cfg['git_url']}/blob/{cfg['branch']}"
    shutil.rmtree(folder, ignore_errors=True); folder.mkdir(parents=True)
    shutil.copytree(ROOT/"figures", folder/"figures")
    notebooks = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT/"nbs").glob("*.ipynb"))}
    navigation, results = contents(notebooks), sections(notebooks)["Results"]
    for stem, notebook in notebooks.items():
        made = page(stem, notebook, repository, folded=stem in results)
        if stem == "index": made["cells"].append(dict(cell_type="markdown", id="navigation", metadata={}, source=navigation))
        (folder/f"{stem}.ipynb").write_text(json.dumps(made), encoding="utf-8")
    (folder/"names.md").write_text(names(), encoding="utf-8")
    return folder


def main(target=ROOT/"_docs"):
    target = Path(target).resolve()
    pages = staged(target/"pages")
    for old in ("html", "doctrees"): shutil.rmtree(target/old, ignore_errors=True) # pages of notebooks that are no more
    done = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2", "-c", str(HERE), "-d", str(target/"doctrees"), str(pages), str(target/"html")])
    if done.returncode: sys.exit(done.returncode)
    (target/"html"/".nojekyll").touch() # folders that begin with _ are part of it
    print(f"{len(list((target/'html').glob('*.html')))} pages, begin with {target/'html'/'index.html'}")


if __name__ == "__main__": main(*sys.argv[1:])
