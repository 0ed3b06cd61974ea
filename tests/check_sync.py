"""Are the notebooks clean, and do combcomp/, README.md, figures/ and outputs/tables/ say what the notebooks say?

    python tests/check_sync.py clean|export|readme|results [--fix]

Nothing is changed without --fix: `clean` and `export` run nbdev in a copy and compare, `results` runs the result notebooks
into a temporary folder. nbdev_readme needs Quarto, so README.md is built here.
"""

import json, os, posixpath, re, shutil, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def nbdev(command, root):
    "Run an nbdev command in a project folder"
    env = {
        k: v for k, v in os.environ.items() if k != "IN_TEST"
    }  # nbdev_test sets it, and it stops nbdev_export
    module = dict(nbdev_clean="clean", nbdev_export="doclinks")[command]
    done = subprocess.run(
        [sys.executable, "-c", f"from nbdev.{module} import {command}; {command}()"],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode or "Failed to" in done.stderr:  # nbdev_clean only warns of what it cannot read
        raise RuntimeError(f"{command} failed in {root}\n{done.stderr}")


def project(root):
    "The files that nbdev reads and writes, by relative path"
    paths = [p for glob in ("nbs/**/*.ipynb", "combcomp/**/*.py") for p in sorted(root.glob(glob))]
    return {
        p.relative_to(root).as_posix(): p.read_text(encoding="utf-8")
        for p in paths
        if ".ipynb_checkpoints" not in p.parts
    }


BY_HAND = ("combcomp/__init__.py", "combcomp/__main__.py")  # every other module is exported


def changed_by(command, root=ROOT):
    "The files that an nbdev command would change, add or not write, found in a copy"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name, text in project(root).items():
            if command == "nbdev_export" and name.startswith("combcomp/") and name not in BY_HAND:
                continue  # nbdev has to write it
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_text(text, encoding="utf-8")
        shutil.copy(root / "settings.ini", copy)
        nbdev(command, copy)
        before, after = project(root), project(copy)
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def relative(text):
    "Links from nbs/ as links from the top: ../figures/x.png -> figures/x.png, 00_tour.ipynb -> nbs/00_tour.ipynb"

    def link(m):
        return m[1] + (m[2] if re.match(r"[a-z]+:|[#/]", m[2]) else posixpath.normpath("nbs/" + m[2]))

    return re.sub(r"""(\]\(|(?:src|href)=["'])([^\s)"']+)""", link, text)


def shown(output):
    "The Markdown of one output: Markdown, else an HTML table, else text; no images, nothing of stderr"
    data = {k: "".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/")}
    if any(k.startswith("image/") for k in output.get("data", {})) or output.get("name") == "stderr":
        return ""
    if "text/markdown" in data:
        return relative(data["text/markdown"])
    if table := re.search(r"<table.*</table>", data.get("text/html", ""), re.DOTALL):
        return table[0]
    text = "".join(output.get("text", "")) or data.get("text/plain", "")
    return f"```\n{text.rstrip()}\n```" if text.strip() else ""


def readme(notebook=ROOT / "nbs/index.ipynb"):
    "README.md as text: prose, code without its `#|` lines, and stored outputs; cells with `#| hide` left out"
    parts = []
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        options = re.findall(r"^#\|\s*(.*?)\s*$", source, re.MULTILINE)
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip()
        if "hide" in options:
            continue
        if cell["cell_type"] == "markdown":
            parts.append(relative(source.strip()))
        if cell["cell_type"] == "code":
            if code and "echo: false" not in options:
                parts.append(f"```python\n{code}\n```")
            parts += map(shown, cell["outputs"])
    return "\n\n".join(p.strip() for p in parts if p.strip()) + "\n"


def stale_readme(root=ROOT):
    "README.md, if it is not what nbs/index.ipynb says"
    readme_md = root / "README.md"
    now = readme_md.read_text(encoding="utf-8") if readme_md.exists() else ""
    return [] if now == readme(root / "nbs/index.ipynb") else ["README.md"]


# These write figures and tables
RESULTS = ("table1", "figure1", "findings", "glue", "recipe", "ablations", "speed")
REMADE = (*RESULTS, "explore", "index")  # these write nothing; index quotes tables of the others
MEASURED = (
    "outputs/tables/speed_",
    "outputs/tables/soak.",
    "outputs/tables/zoo.",
)  # measured on one machine: what figures are drawn from
WIDGET = "application/vnd.jupyter.widget-view+json"  # controls of a kernel that is gone


def executed(name, into=None, root=ROOT):
    "A result notebook after running; `into` is where it writes instead of the project, in the folder combcomp/"
    import nbformat
    from nbclient import NotebookClient

    path = root / "nbs" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    redirected = dict(IN_TEST="1", TMPDIR=str(into)) if into else {}  # see `combcomp.basics.results_folder`
    client.execute(env={**os.environ, **redirected})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def said(notebook):
    "What a notebook says in words: its Markdown outputs"
    outputs = [o.get("data", {}) for c in notebook["cells"] for o in c.get("outputs", [])]
    return ["".join(data["text/markdown"]) for data in outputs if "text/markdown" in data]


def shows(path):
    "What a file says: the fingerprint of a figure (its pixels depend on fonts), the text of a table"
    if path.suffix not in (".png", ".svg"):
        return path.read_text(encoding="utf-8")
    mark = re.search(rb"shows [0-9a-f]{16}", path.read_bytes())
    return mark and mark[0]


def differing(made, root):
    "Files of `made` that the project has otherwise or not at all"
    names = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    return [
        n
        for n in names
        if not (root / n).is_file() or shows(root / n) is None or shows(root / n) != shows(made / n)
    ]


def stale_results(root=ROOT, names=REMADE):
    """Figures, tables and generated prose that the committed rows no longer give.

    With all `names`, also the figures and tables that no notebook makes.
    """
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(2) as pool:
            words = [*pool.map(lambda name: said(executed(name, folder, root)), names)]
        stored = [json.loads((root / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8")) for name in names]
        stale = [
            f"nbs/{name}.ipynb" for name, now, before in zip(names, words, stored) if now != said(before)
        ]
        made = Path(folder) / "combcomp"
        there = {
            p.relative_to(root).as_posix()
            for glob in ("figures/*", "outputs/tables/*")
            for p in root.glob(glob)
        }
        left = (
            {n for n in there if not n.startswith(MEASURED) and not (made / n).is_file()}
            if names == REMADE
            else ()
        )
        return stale + differing(made, root) + sorted(f"{n} (made by no notebook)" for n in left)


def make_results():
    "Run the result notebooks, write their figures and tables, and keep the notebooks whose words changed"
    import nbformat

    for name in REMADE:
        path = ROOT / "nbs" / f"{name}.ipynb"
        notebook = executed(name)
        if name == "speed" and said(notebook) == said(json.loads(path.read_text(encoding="utf-8"))):
            continue  # its other outputs are times of the machine that measured
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        nbformat.write(notebook, path)
    nbdev("nbdev_clean", ROOT)


CHECKS = dict(
    clean=lambda: changed_by("nbdev_clean"),
    export=lambda: changed_by("nbdev_export"),
    readme=stale_readme,
    results=stale_results,
)


def fix(what):
    "Write what the check `what` found"
    if what == "readme":
        (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    elif what == "results":
        make_results()
    else:
        nbdev(f"nbdev_{what}", ROOT)


def main(what, *flags):
    if what not in CHECKS or flags not in ((), ("--fix",)):
        sys.exit(__doc__)
    if flags:
        fix(what)
    if wrong := CHECKS[what]():
        advice = (
            "still differs: a module without a notebook? Delete it."
            if flags
            else f"Not in sync. To fix it: make {what}"
        )
        sys.exit(f"{what}: {', '.join(wrong)}\n{advice}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""]))
