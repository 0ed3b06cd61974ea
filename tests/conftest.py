"What every test file may use: the folder of the project, development data if there is any, and a fresh interpreter"

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before anything loads torch
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import functools, json, re, shutil, subprocess, sys
from contextlib import contextmanager
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--long",
        action="store_true",
        help="also the tests that take an hour: every bit of a packed file, and many of a large one",
    )


# Files that take long come first, so that two workers end at about the same time
LONG = (
    "study_sweep papermill data_tasks models_encoders study_cluster cli ship_runtimes study_statistics "
    "compress_training share_hub study_search compress_vocabulary registry data_text_files ship_packed_file "
    "share_inputs models_e5 models_miniatures docs repo data_labels compress_recipe data_augmentation study_glue"
).split()


def pytest_collection_modifyitems(config, items):
    place = {f"test_{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes an hour: pytest --long"))


REPO = Path(__file__).resolve().parent.parent
NBS = REPO / "nbs"
NOTEBOOKS = [p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MODULES = [
    p for p in sorted((REPO / "combcomp").rglob("*.py")) if p.name[0] != "_"
]  # the exported ones, and no __init__


def stem_of(path):
    "data/01_tasks for a notebook, the name without ending for other files"
    path = path.with_suffix("")
    return path.relative_to(NBS).as_posix() if path.is_relative_to(NBS) else path.name


def module_of(path):
    "data.tasks for combcomp/data/tasks.py"
    return ".".join(path.relative_to(REPO / "combcomp").with_suffix("").parts)


def code_of(path):
    "The code cells of a notebook, as text"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def exports(path):
    "The module that a notebook exports, as data.tasks; None for a notebook that exports none"
    found = re.search(r"^#\| default_exp ([\w.]+)", "\n".join(code_of(path)), re.MULTILINE)
    return found and found[1]


def run_py(code, **env):
    "Run code in a fresh process of this interpreter, one thread, in the project's folder; its stdout"
    env = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in env.items()}}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session", name="run_py")
def _run_py():
    "The function `run_py`"
    return run_py


@pytest.fixture(scope="session")
def repo():
    "The folder that holds settings.ini"
    return REPO


@pytest.fixture(scope="session")
def shared():
    "A folder `shared` beside the checkout, with development data; the test is skipped where there is none"
    if not (folder := REPO.parent / "shared").is_dir():
        pytest.skip("development data not beside the checkout")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    "The dictionary and two tasks with their further texts, from the project's own cache if there, else built once"
    from combcomp.data.loading import find_transfer, load_task

    folder = tmp_path_factory.mktemp("cache")
    for kind in ("nltk_data", "tasks"):
        if (REPO / "outputs" / "cache" / kind).is_dir():
            shutil.copytree(REPO / "outputs" / "cache" / kind, folder / kind)
    for task in ("supersense", "accept"):
        load_task(task, cache=folder)
        find_transfer(task, None, folder, "validation")
    return folder


@functools.cache
def tiny_family():
    """A real encoder of two layers of 32 dimensions, as a folder: the family of runs that are about machinery

    It is in the project's own cache, so that all processes have one; its teacher is itself with both layers.
    """
    from combcomp.models.miniatures import miniature_folder

    return miniature_folder("2x32")


@contextmanager
def small_disk(folder, megabytes, cache):
    "A real disk of a size, with a link to the cache, inside a block; the test is skipped where none can be mounted"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        (folder / "cache").symlink_to(cache)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def out(tmp_path, cache):
    "An outputs folder without runs"
    shutil.copytree(cache, tmp_path / "out" / "cache")
    return tmp_path / "out"
