"What holds the repository together: the rules of the notebooks, what may lie where, what an import costs"

import ast, configparser, json, re, shutil, subprocess, sys

import pytest, yaml

import check_sync, run_notebooks
from conftest import MODULES, NBS, NOTEBOOKS, REPO, code_of, exports, module_of, stem_of

TARGETS = "run grid table1 figure1 speed ablations findings explore recipe glue".split()
LIBRARY = [p for p in NOTEBOOKS if exports(p)]
COLUMNS = 110


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=stem_of)


def cells(path):
    "(type, source, tags) of the cells of a notebook"
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in every]


# Notebooks


def test_every_module_has_its_notebook_in_the_room_of_the_same_name():
    assert {exports(p) for p in LIBRARY} == {*map(module_of, MODULES)}
    assert {"run", "index", "tour"} <= {*map(stem_of, NOTEBOOKS)}
    assert not [p for p in LIBRARY if stem_of(p).rpartition("/")[0] != exports(p).rpartition(".")[0]]


def test_every_notebook_is_run_once():
    "By the check of results, or after it, those that take long first"
    every = [*map(stem_of, run_notebooks.in_order()), *check_sync.REMADE]
    assert sorted(every) == sorted(map(stem_of, NOTEBOOKS)) and {*run_notebooks.LONG} <= {*every}
    assert every[0] in run_notebooks.LONG and every.index("tour") < every.index("basics")


@each(NOTEBOOKS)
def test_kernel(path):
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"


def long_lines(sources):
    "Lines of code that are wider than a screen"
    return [line for source in sources for line in source.splitlines() if len(line) > COLUMNS]


@each(NOTEBOOKS)
def test_no_line_of_code_is_long(path):
    assert not long_lines(code_of(path))


def test_long_lines_are_noticed():
    assert long_lines(["a = 1\nb = 2", "#" + "x" * COLUMNS]) == ["#" + "x" * COLUMNS]
    by_hand = [
        (REPO / "combcomp" / f"__{name}__.py").read_text(encoding="utf-8") for name in ("init", "main")
    ]
    assert not long_lines(by_hand)


def bad_parameters(source):
    "Lines of a parameters cell that are not `name: type = literal # what it is`"
    lines = source.splitlines()

    def good(node):
        try:
            return (
                isinstance(node, ast.AnnAssign)
                and (ast.literal_eval(node.value), re.search(r"#\s*\w", lines[node.end_lineno - 1]))[1]
            )
        except ValueError:
            return False

    return [ast.unparse(node) for node in ast.parse(source).body if not good(node)]


@each([p for p in NOTEBOOKS if stem_of(p) in TARGETS])
def test_parameters(path):
    (source,) = [source for _, source, tags in cells(path) if "parameters" in tags]
    assert ast.parse(source).body and not bad_parameters(source)


def test_parameters_can_be_wrong():
    assert not bad_parameters('methods: str = "kd" # any\nlr: float | None = None # a rate')
    assert len(bad_parameters('methods = "kd" # any\nseed: int = 0\nlimit: int = f() # n')) == 3


@each(LIBRARY)
def test_opening(path):
    kind, first, _ = cells(path)[0]
    assert kind == "markdown" and re.fullmatch(
        r"# \S.*\n\n> \S.*", first.strip()
    ), "a title, then one line of blockquote"
    assert not re.search(r"[.!?] [A-Z]", first), "one sentence"


# Library


@each(MODULES)
def test_docstrings(path):
    nodes = [
        n
        for n in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"
    ]
    assert not [n.name for n in nodes if not ast.get_docstring(n)]


def unsafe(source):
    "What could run code from a file: pickle, torch.load, numpy's allow_pickle, eval and exec"
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            modules = [getattr(n, "module", None) or "", *(a.name for a in n.names)]
            if {"pickle", "cloudpickle", "dill", "joblib"} & {m.split(".")[0] for m in modules}:
                yield ast.unparse(n)
        if isinstance(n, ast.Name) and n.id in ("eval", "exec"):
            yield n.id
        if isinstance(n, ast.Attribute) and ast.unparse(n) == "torch.load":
            yield "torch.load"
        if isinstance(n, ast.keyword) and n.arg == "allow_pickle" and ast.unparse(n.value) != "False":
            yield "allow_pickle"


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_runs_no_code_from_files(path):
    assert not list(unsafe(path.read_text(encoding="utf-8")))


def test_unsafe_is_noticed():
    code = (
        "import pickle\nfrom torch import load\ntorch.load(f)\neval(x)\nnp.load(f, allow_pickle=True)\n"
        "model.eval(); ast.literal_eval(x)"
    )
    assert sorted(unsafe(code)) == ["allow_pickle", "eval", "import pickle", "torch.load"]


def test_import_is_light(run_py):
    heavy = "{m for m in ('torch', 'transformers', 'datasets', 'numpy', 'pandas', 'matplotlib') if m in sys.modules}"
    code = f"import sys, combcomp; dir(combcomp); combcomp.Run; print({heavy} or 'light')"
    assert run_py(code).strip() == "light"


def test_names_come_when_used(run_py):
    "And are functions and classes also after the modules of other names are loaded"
    got = run_py(
        "import combcomp\nfor name in 2*combcomp.__all__: print(name, callable(getattr(combcomp, name)))"
    )
    import combcomp

    assert got.splitlines() == 2 * [f"{name} True" for name in combcomp.__all__]
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        combcomp.rum


def test_ids_do_not_depend_on_the_process(run_py):
    run = "Run(size='l1', methods='qat, kd(alpha=0.3, temperature=4)', seed=3, lr=1e-4)"
    code = f"from combcomp import Run; print({run}.id)"
    ids = {run_py(code, PYTHONHASHSEED=seed).strip() for seed in (0, 1, "random")}
    assert len(ids) == 1 and re.fullmatch(r"[0-9a-f]{16}", ids.pop())


# Repository


@pytest.fixture(scope="module")
def tracked():
    "Paths that git knows, or would add"
    if not (REPO / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\0")
    return [n for n in names if n and (REPO / n).is_file()]


def test_top_level(tracked):
    allowed = (
        "settings.ini README.md nbs combcomp tests figures outputs "
        "LICENSE CHANGELOG.md CITATION.cff CONTRIBUTING.md Makefile setup.py pyproject.toml"
    ).split()
    top = {n.split("/")[0] for n in tracked}
    assert "settings.ini" in top and not {t for t in top if t not in allowed and not t.startswith(".")}


PRIVATE = re.compile("/(home|root|work|tmp)/")  # folders of one machine


def test_no_absolute_paths(tracked):
    found = []
    for name in tracked:
        try:
            text = (REPO / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # an image
            continue
        if m := PRIVATE.search(text):
            found.append(f"{name}: ...{text[max(0, m.start() - 30):m.end() + 30]!r}")
    assert not found and PRIVATE.search("at /" + "home/me")


def config(root=REPO):
    "The settings of the project"
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(root / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def test_the_package_holds_every_room_and_its_data(tracked, tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(list(map(str, command)), cwd=REPO, check=True, capture_output=True)
    built = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert built == {n for n in tracked if n.startswith("combcomp/")}


def test_the_citation_is_that_of_the_package():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "references"} <= {*citation}
    assert citation["version"] == config()["version"] and citation["title"].startswith(
        f"{config()['title']}:"
    )
    assert f"## {config()['version']}" in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_requirement_has_a_reason():
    ini = config()
    comments = "\n".join(
        re.findall("^#.*", (REPO / "settings.ini").read_text(encoding="utf-8"), re.MULTILINE)
    )
    names = [re.split(r"[<>=!~\[; ]", line)[0] for line in ini["requirements"].split("\n")]
    assert len(names) > 10
    assert not [n for n in names if not re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", comments)]
    extras = [key.removesuffix("_requirements") for key in ini if key.endswith("_requirements")]
    assert extras and not [e for e in extras if not re.search(rf"^# {e}: \w+", comments, re.MULTILINE)]


@pytest.mark.parametrize("allowed", [True, False])
def test_cleaning_keeps_the_parameters_tag(tmp_path, allowed):
    assert config()["allowed_cell_metadata_keys"].split() == ["tags"]
    settings = (REPO / "settings.ini").read_text(encoding="utf-8")
    if not allowed:
        settings = settings.replace("allowed_cell_metadata_keys = tags", "allowed_cell_metadata_keys =")
    (tmp_path / "settings.ini").write_text(settings, encoding="utf-8")
    (tmp_path / "nbs").mkdir()
    cell = dict(
        cell_type="code",
        id="a",
        execution_count=1,
        metadata=dict(tags=["parameters"], more=1),
        outputs=[],
        source=["x: int = 1 # one"],
    )
    notebook = tmp_path / "nbs" / "run.ipynb"
    notebook.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    check_sync.nbdev("nbdev_clean", tmp_path)
    (cleaned,) = json.loads(notebook.read_text())["cells"]
    assert cleaned["execution_count"] is None
    assert cleaned["metadata"] == (dict(tags=["parameters"]) if allowed else {})


# In sync: what `make test` checks first, and that these checks notice


@pytest.fixture
def copy(tmp_path):
    "A project of two notebooks, one of them in a room, in sync"
    for folder in ("nbs/room", "combcomp"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("settings.ini", "combcomp/__init__.py"):
        shutil.copy(REPO / name, tmp_path / name)
    for stem, module, source in (
        ("base", "base", "LIMIT = 2\ndef f(): pass"),
        ("room/01_thing", "room.thing", "from combcomp.base import LIMIT\nTHREE = 3"),
    ):
        cells = [
            dict(cell_type="code", id=str(i), execution_count=None, metadata={}, outputs=[], source=text)
            for i, text in enumerate((f"#| default_exp {module}", f"#| export\n{source}"))
        ]
        text = json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))
        (tmp_path / "nbs" / f"{stem}.ipynb").write_text(text)
    for command in ("nbdev_clean", "nbdev_export"):
        check_sync.nbdev(command, tmp_path)
    return tmp_path


def test_in_sync(copy):
    assert check_sync.changed_by("nbdev_clean", copy) == check_sync.changed_by("nbdev_export", copy) == []
    assert "from ..base import LIMIT" in (copy / "combcomp/room/thing.py").read_text(encoding="utf-8")
    assert (copy / "combcomp/__init__.py").read_bytes() == (REPO / "combcomp/__init__.py").read_bytes()


@pytest.mark.parametrize(
    "name, old, new, command, noticed",
    [
        (
            "nbs/room/01_thing.ipynb",
            '"execution_count": null',
            '"execution_count": 7',
            "nbdev_clean",
            ["nbs/room/01_thing.ipynb"],
        ),
        ("nbs/base.ipynb", "LIMIT = 2", "LIMIT = 3", "nbdev_export", ["combcomp/base.py"]),
        ("nbs/room/01_thing.ipynb", "THREE = 3", "THREE = 4", "nbdev_export", ["combcomp/room/thing.py"]),
        ("combcomp/room/thing.py", "THREE = 3", "THREE = 4", "nbdev_export", ["combcomp/room/thing.py"]),
        ("combcomp/_modidx.py", "base.html#f'", "base.html#g'", "nbdev_export", ["combcomp/_modidx.py"]),
        ("combcomp/room/__init__.py", "", "x = 1", "nbdev_export", ["combcomp/room/__init__.py"]),
        ("combcomp/stray.py", "", "x = 1", "nbdev_export", ["combcomp/stray.py"]),
        ("combcomp/room/stray.py", "", "x = 1", "nbdev_export", ["combcomp/room/stray.py"]),
    ],
)
def test_out_of_sync_is_noticed(copy, name, old, new, command, noticed):
    path = copy / name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert check_sync.changed_by(command, copy) == noticed
    assert path.read_text(encoding="utf-8") == text.replace(old, new, 1), "a check changes nothing"


def test_readme(tmp_path):
    output = lambda kind, **more: dict(output_type=kind, **more)
    data = lambda **mimes: output("display_data", data={k.replace("_", "/"): v for k, v in mimes.items()})
    code = lambda source, *outputs: dict(cell_type="code", source=[source], outputs=list(outputs))
    markdown = [
        "# t\n",
        "\n",
        "[a](tour.ipynb) [e](data/01_tasks.ipynb) ![b](../figures/x.png) [c](https://a.b) [d](#e)",
    ]
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/index.ipynb").write_text(
        json.dumps(
            dict(
                cells=[
                    dict(cell_type="markdown", source=markdown),
                    code("#| hide\nsecret"),
                    code("#| echo: false\nquiet", output("stream", name="stdout", text=["a\n", "b\n"])),
                    code(
                        "#| eval: false\nf(x)",
                        output("stream", name="stderr", text="noise"),
                        data(text_plain="<Figure>", image_png="AAAA"),
                    ),
                    code(
                        "t",
                        data(text_plain="p", text_html=["<style>s</style>\n", "<table>1</table>"]),
                        data(text_plain="p", text_html="<table>", text_markdown="|m|"),
                    ),
                ]
            )
        )
    )
    links = "[a](nbs/tour.ipynb) [e](nbs/data/01_tasks.ipynb) ![b](figures/x.png) [c](https://a.b) [d](#e)"
    assert check_sync.readme(tmp_path / "nbs/index.ipynb").split("\n\n") == [
        "# t",
        links,
        "```\na\nb\n```",
        "```python\nf(x)\n```",
        "```python\nt\n```",
        "<table>1</table>",
        "|m|\n",
    ]
    assert check_sync.stale_readme(tmp_path) == ["README.md"]
    (tmp_path / "README.md").write_text(check_sync.readme(tmp_path / "nbs/index.ipynb"), encoding="utf-8")
    assert check_sync.stale_readme(tmp_path) == []


def test_the_readme_says_what_the_released_rows_say(tmp_path):
    "nbs/index.ipynb, executed now, gives README.md: its stored tables are those of outputs/results.csv"
    import nbformat

    nbformat.write(check_sync.executed("index", tmp_path), tmp_path / "index.ipynb")
    assert check_sync.readme(tmp_path / "index.ipynb") == (REPO / "README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    links = [l for l in re.findall(r"\]\(([^)]+)\)", text) if not l.startswith("http")]
    assert len(links) > 10 and not [l for l in links if not (REPO / l).exists()]
