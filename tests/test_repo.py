"What holds the repository together: the rules of the notebooks, what may lie where, what an import costs"
import ast, configparser, json, re, shutil, subprocess

import pytest

import check_sync
from conftest import REPO

TARGETS = "run grid table1 figure1 speed ablations findings explore recipe".split()
NOTEBOOKS = sorted((REPO/"nbs").glob("*.ipynb"))
LIBRARY = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name) and not p.name.startswith("00_")]
each = lambda paths: pytest.mark.parametrize("path", paths, ids=lambda p: p.stem)


def cells(path):
    "(type, source, tags) of the cells of a notebook"
    return [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def code_cells(path): return [source for kind, source, _ in cells(path) if kind == "code"]


# Notebooks

def test_every_module_has_its_notebook():
    names = {re.search(r"default_exp (\w+)", "\n".join(code_cells(p)))[1] for p in LIBRARY}
    assert names == {p.stem for p in MODULES if p.stem[0] != "_"} and {"run", "index", "00_tour"} <= {p.stem for p in NOTEBOOKS}


@each(NOTEBOOKS)
def test_kernel(path):
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"


def bad_parameters(source):
    "Lines of a parameters cell that are not `name: type = literal # what it is`"
    lines = source.splitlines()
    def good(node):
        try: return isinstance(node, ast.AnnAssign) and (ast.literal_eval(node.value), re.search(r"#\s*\w", lines[node.end_lineno - 1]))[1]
        except ValueError: return False
    return [ast.unparse(node) for node in ast.parse(source).body if not good(node)]


@each([p for p in NOTEBOOKS if p.stem in TARGETS])
def test_parameters(path):
    (source,) = [source for _, source, tags in cells(path) if "parameters" in tags]
    assert ast.parse(source).body and not bad_parameters(source)


def test_parameters_can_be_wrong():
    assert not bad_parameters('methods: str = "kd" # any\nlr: float | None = None # a rate')
    assert len(bad_parameters('methods = "kd" # any\nseed: int = 0\nlimit: int = f() # n')) == 3


@each(LIBRARY)
def test_opening(path):
    kind, first, _ = cells(path)[0]
    assert kind == "markdown" and re.fullmatch(r"# \S.*\n\n> \S.*", first.strip()), "a title, then one line of blockquote"
    assert not re.search(r"[.!?] [A-Z]", first), "one sentence"
    assert any(re.match(r"#\| default_exp \w+$", source.strip()) for source in code_cells(path))


# Library

MODULES = sorted((REPO/"combcomp").glob("*.py"))


@each([p for p in MODULES if p.name[0] != "_"])
def test_docstrings(path):
    nodes = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"]
    assert not [n.name for n in nodes if not ast.get_docstring(n)]


def unsafe(source):
    "What could run code from a file: pickle, torch.load, numpy's allow_pickle, eval and exec"
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            modules = [getattr(n, "module", None) or "", *(a.name for a in n.names)]
            if {"pickle", "cloudpickle", "dill", "joblib"} & {m.split(".")[0] for m in modules}: yield ast.unparse(n)
        if isinstance(n, ast.Name) and n.id in ("eval", "exec"): yield n.id
        if isinstance(n, ast.Attribute) and ast.unparse(n) == "torch.load": yield "torch.load"
        if isinstance(n, ast.keyword) and n.arg == "allow_pickle" and ast.unparse(n.value) != "False": yield "allow_pickle"


@each(MODULES)
def test_runs_no_code_from_files(path):
    assert not list(unsafe(path.read_text(encoding="utf-8")))


def test_unsafe_is_noticed():
    code = "import pickle\nfrom torch import load\ntorch.load(f)\neval(x)\nnp.load(f, allow_pickle=True)\nmodel.eval(); ast.literal_eval(x)"
    assert sorted(unsafe(code)) == ["allow_pickle", "eval", "import pickle", "torch.load"]


def test_import_is_light(run_py):
    heavy = "{m for m in ('torch', 'transformers', 'datasets', 'numpy', 'pandas', 'matplotlib') if m in sys.modules}"
    assert run_py(f"import sys, combcomp; dir(combcomp); print({heavy} or 'light')").strip() == "light"


def test_names_come_when_used(run_py):
    got = run_py("import combcomp\nfor name in combcomp.__all__: print(name, callable(getattr(combcomp, name)))")
    import combcomp
    assert got.splitlines() == [f"{name} True" for name in combcomp.__all__]
    with pytest.raises(AttributeError, match="no attribute 'rum'"): combcomp.rum


def test_a_module_does_not_hide_the_function_of_its_name(run_py):
    assert run_py("import combcomp, combcomp.grid, combcomp.pack\nprint(type(combcomp.grid).__name__, type(combcomp.pack).__name__)").split() == ["function"] * 2


def test_ids_do_not_depend_on_the_process(run_py):
    code = "from combcomp import Run; print(Run(size='l1', methods='qat, kd(alpha=0.3, temperature=4)', seed=3, lr=1e-4).id)"
    ids = {run_py(code, PYTHONHASHSEED=seed).strip() for seed in (0, 1, "random")}
    assert len(ids) == 1 and re.fullmatch(r"[0-9a-f]{16}", ids.pop())


# Repository

@pytest.fixture(scope="module")
def tracked():
    "Paths that git knows, or would add"
    if not (REPO/".git").exists() or not shutil.which("git"): pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\0")
    return [n for n in names if n and (REPO/n).is_file()]


def test_top_level(tracked):
    allowed = "settings.ini README.md nbs combcomp tests figures outputs LICENSE setup.py pyproject.toml Makefile CONTRIBUTING.md".split()
    top = {n.split("/")[0] for n in tracked}
    assert "settings.ini" in top and not {t for t in top if t not in allowed and not t.startswith(".")}


PRIVATE = re.compile("/(home|root|work|tmp)/") # folders of one machine


def test_no_absolute_paths(tracked):
    found = []
    for name in tracked:
        try: text = (REPO/name).read_text(encoding="utf-8")
        except UnicodeDecodeError: continue # an image
        if m := PRIVATE.search(text): found.append(f"{name}: ...{text[max(0, m.start() - 30):m.end() + 30]!r}")
    assert not found and PRIVATE.search("at /" + "home/me")


def config(root=REPO):
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(root/"settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def test_every_requirement_has_a_reason():
    ini = config()
    comments = "\n".join(l for l in (REPO/"settings.ini").read_text(encoding="utf-8").splitlines() if l.startswith("#"))
    names = [re.split(r"[<>=!~\[; ]", line)[0] for line in ini["requirements"].split("\n")]
    assert len(names) > 10 and not [n for n in names if not re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", comments)]
    extras = [key.removesuffix("_requirements") for key in ini if key.endswith("_requirements")]
    assert extras and not [e for e in extras if not re.search(rf"^# {e}: \w+", comments, re.MULTILINE)]


@pytest.mark.parametrize("allowed", [True, False])
def test_cleaning_keeps_the_parameters_tag(tmp_path, allowed):
    assert config()["allowed_cell_metadata_keys"].split() == ["tags"]
    settings = (REPO/"settings.ini").read_text(encoding="utf-8")
    if not allowed: settings = settings.replace("allowed_cell_metadata_keys = tags", "allowed_cell_metadata_keys =")
    (tmp_path/"settings.ini").write_text(settings, encoding="utf-8")
    (tmp_path/"nbs").mkdir()
    cell = dict(cell_type="code", id="a", execution_count=1, metadata=dict(tags=["parameters"], more=1), outputs=[], source=["x: int = 1 # one"])
    notebook = tmp_path/"nbs"/"run.ipynb"
    notebook.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    check_sync.nbdev("nbdev_clean", tmp_path)
    (cleaned,) = json.loads(notebook.read_text())["cells"]
    assert cleaned["execution_count"] is None and cleaned["metadata"] == (dict(tags=["parameters"]) if allowed else {})


# In sync: what `make test` checks first, and that these checks notice

@pytest.fixture
def copy(tmp_path):
    "A project with one notebook, in sync"
    for folder in ("nbs", "combcomp"): (tmp_path/folder).mkdir()
    for name in ("settings.ini", "combcomp/__init__.py", "nbs/01_config.ipynb"): shutil.copy(REPO/name, tmp_path/name)
    check_sync.nbdev("nbdev_export", tmp_path)
    return tmp_path


def test_in_sync(copy):
    assert check_sync.changed_by("nbdev_clean", copy) == check_sync.changed_by("nbdev_export", copy) == []


@pytest.mark.parametrize("name, old, new, command, noticed", [
    ("nbs/01_config.ipynb", '"execution_count": null', '"execution_count": 7', "nbdev_clean", ["nbs/01_config.ipynb"]),
    ("nbs/01_config.ipynb", "SCHEMA = 2", "SCHEMA = 3", "nbdev_export", ["combcomp/config.py"]),
    ("combcomp/config.py", "SCHEMA = 2", "SCHEMA = 3", "nbdev_export", ["combcomp/config.py"]),
    ("combcomp/_modidx.py", "config.html#run'", "config.html#r'", "nbdev_export", ["combcomp/_modidx.py"]),
    ("combcomp/stray.py", "", "x = 1", "nbdev_export", ["combcomp/stray.py"]),
])
def test_out_of_sync_is_noticed(copy, name, old, new, command, noticed):
    path = copy/name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert check_sync.changed_by(command, copy) == noticed
    assert path.read_text(encoding="utf-8") == text.replace(old, new, 1), "a check changes nothing"


def test_readme(tmp_path):
    output = lambda kind, **more: dict(output_type=kind, **more)
    data = lambda **mimes: output("display_data", data={k.replace("_", "/"): v for k, v in mimes.items()})
    code = lambda source, *outputs: dict(cell_type="code", source=[source], outputs=list(outputs))
    (tmp_path/"nbs").mkdir()
    (tmp_path/"nbs/index.ipynb").write_text(json.dumps(dict(cells=[
        dict(cell_type="markdown", source=["# t\n", "\n", "[a](00_tour.ipynb) ![b](../figures/x.png) [c](https://a.b) [d](#e)"]),
        code("#| hide\nsecret"), code("#| echo: false\nquiet", output("stream", name="stdout", text=["a\n", "b\n"])),
        code("#| eval: false\nf(x)", output("stream", name="stderr", text="noise"), data(text_plain="<Figure>", image_png="AAAA")),
        code("t", data(text_plain="p", text_html=["<style>s</style>\n", "<table>1</table>"]), data(text_plain="p", text_html="<table>", text_markdown="|m|"))])))
    links = "[a](nbs/00_tour.ipynb) ![b](figures/x.png) [c](https://a.b) [d](#e)"
    assert check_sync.readme(tmp_path/"nbs/index.ipynb").split("\n\n") == [
        "# t", links, "```\na\nb\n```", "```python\nf(x)\n```", "```python\nt\n```", "<table>1</table>", "|m|\n"]
    assert check_sync.stale_readme(tmp_path) == ["README.md"]
    (tmp_path/"README.md").write_text(check_sync.readme(tmp_path/"nbs/index.ipynb"), encoding="utf-8")
    assert check_sync.stale_readme(tmp_path) == []


def test_the_readme_says_what_the_released_rows_say(tmp_path):
    "nbs/index.ipynb, executed now, gives README.md: its stored tables are those of outputs/results.csv"
    import nbclient, nbformat
    notebook = nbformat.read(REPO/"nbs"/"index.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=dict(metadata=dict(path=str(REPO/"nbs")))).execute()
    nbformat.write(notebook, tmp_path/"index.ipynb")
    assert check_sync.readme(tmp_path/"index.ipynb") == (REPO/"README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere():
    text = (REPO/"README.md").read_text(encoding="utf-8")
    links = [l for l in re.findall(r"\]\(([^)]+)\)", text) if not l.startswith("http")]
    assert len(links) > 10 and not [l for l in links if not (REPO/l).exists()]
