"""A site from the notebooks as they are committed: python .site/build.py [folder], by default _docs

Nothing is executed. Pages are copies of nbs/*.ipynb without the directives of nbdev; navigation follows from file names, and
a notebook that belongs to no section ends the build.
"""
import ast, json, posixpath, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECTIONS = {"Begin here": r"00_tour|guide_\w+", "Results": r"table1|figure1|findings|speed|ablations|explore", "Running": r"run|grid", "Library": r"\d\d_\w+"} # in this order; a notebook is in the first that fits


def settings():
    "The project's settings, as strings"
    config = ConfigParser(); config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def section(stem):
    "Where a notebook stands"
    return next((s for s, pattern in SECTIONS.items() if re.fullmatch(pattern, stem)), None)


def relinked(text, repository, output=False):
    "Links of a notebook as links of a page: figures beside it, what is no page in the repository; in outputs Sphinx resolves none"
    def link(m):
        target, mark, anchor = m[2].partition("#")
        if re.match(r"[a-z]+:", m[2]) or not target: return m[0]
        if target.endswith(".ipynb"): return m[1] + target.replace(".ipynb", ".html") + mark + anchor if output else m[0]
        path = posixpath.normpath("nbs/" + target)
        return m[1] + (path if path.startswith("figures/") else f"{repository}/blob/main/{path}{mark}{anchor}")
    return re.sub(r"(\]\()([^\s)]+)", link, text)


def page(notebook, repository):
    "A notebook as a page: what nbdev hides is hidden, its directives are not shown"
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        options = re.findall(r"^#\|\s*(.*?)\s*$", source, re.MULTILINE)
        source = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip()
        if "hide" in options or any(o.startswith("default_exp") for o in options) or not source: continue
        if cell["cell_type"] == "markdown": cells.append(dict(cell, source=relinked(re.sub("^# ", "## ", source) if cells else source, repository))); continue
        outputs = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        for o in outputs:
            if "text/markdown" in o.get("data", {}): o["data"]["text/markdown"] = relinked("".join(o["data"]["text/markdown"]), repository, True)
        cells.append(dict(cell, source=source, outputs=outputs, metadata=dict(tags=["remove-input"] if "echo: false" in options else [])))
    return dict(notebook, cells=cells)


def contents(stems):
    "Markdown of the navigation"
    every = {s: [] for s in SECTIONS}
    for stem in sorted(stems, key=lambda s: (s.startswith("guide"), s)):
        if stem == "index": continue
        if (where := section(stem)) is None: sys.exit(f"nbs/{stem}.ipynb belongs to no section of the site; see SECTIONS in {HERE.name}/build.py")
        every[where].append(stem)
    every["Library"].append("names")
    return "\n\n".join(f"```{{toctree}}\n:hidden:\n:caption: {name}\n\n" + "\n".join(pages) + "\n```" for name, pages in every.items())


def names():
    "Markdown of a page with every public name: its module, its notebook, its docstring"
    lines = ["# names", "", "> Every public name of the library, where it is explained, and what it does", ""]
    for path in sorted((ROOT/"nbs").glob("[0-9][0-9]_*.ipynb")):
        module = ROOT/"combcomp"/f"{path.stem[3:]}.py"
        if not module.is_file(): continue
        tree = ast.parse(module.read_text(encoding="utf-8"))
        said = {n.name: (ast.get_docstring(n) or "").splitlines()[:1] for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")}
        lines += [f"## {module.stem}", "", f"[{path.stem}]({path.name})", "", "| name | |", "|---|---|", *(f"| `{k}` | {''.join(v).replace('|', '/')} |" for k, v in said.items()), ""]
    return "\n".join(lines)


def staged(folder):
    "Write the pages; the folder"
    cfg = settings()
    repository = cfg["git_url"]
    shutil.rmtree(folder, ignore_errors=True); folder.mkdir(parents=True)
    shutil.copytree(ROOT/"figures", folder/"figures")
    notebooks = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((ROOT/"nbs").glob("*.ipynb"))}
    navigation = contents(notebooks)
    for stem, notebook in notebooks.items():
        made = page(notebook, repository)
        if stem == "index": made["cells"].append(dict(cell_type="markdown", id="navigation", metadata={}, source=navigation))
        (folder/f"{stem}.ipynb").write_text(json.dumps(made), encoding="utf-8")
    (folder/"names.md").write_text(names(), encoding="utf-8")
    return folder


def main(target=ROOT/"_docs"):
    target = Path(target).resolve()
    pages = staged(target/"pages")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2", "-c", str(HERE), "-d", str(target/"doctrees"), str(pages), str(target/"html")])
    if done.returncode: sys.exit(done.returncode)
    (target/"html"/".nojekyll").touch() # folders that begin with _ are part of it
    print(f"{len(list((target/'html').glob('*.html')))} pages, begin with {target/'html'/'index.html'}")


if __name__ == "__main__": main(*sys.argv[1:])
