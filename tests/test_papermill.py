"The notebooks as papermill runs them: parameters arrive, misspelled ones fail, the whole job is done without an output path"

import copy, json, os, subprocess, sys
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, papermill, pytest
from conftest import REPO, tiny_family
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from combcomp import Run, load_results
from combcomp.study.store import load_predictions, save_predictions

TINY = tiny_family()
SMALL = dict(family=TINY, size="l1", task="accept", limit=64, epochs=1.0)
GRID = dict(family=TINY, sizes="l1", tasks="accept", limits="accept=64", epochs=1.0)


def execute(args, cwd, notebook="run", **kwargs):
    "papermill as a command"
    return subprocess.run(
        [sys.executable, "-m", "papermill", str(REPO / "nbs" / f"{notebook}.ipynb"), *map(str, args)],
        cwd=cwd,
        text=True,
        capture_output=True,
        **kwargs,
    )


def flags(**parameters):
    return [x for k, v in parameters.items() for x in ("-p", k, v)]


def error_of(notebook, **parameters):
    "The error that a notebook ends in if papermill puts these parameters into it; its cells are run here, as a kernel takes seconds to start"
    source, names = load_notebook_node(str(REPO / "nbs" / f"{notebook}.ipynb")), dict(
        display=lambda *a, **k: None
    )
    cells = parameterize_notebook(
        source, {k: str(v) if isinstance(v, Path) else v for k, v in parameters.items()}
    ).cells
    try:
        with plt.rc_context():
            for cell in cells:
                if cell.cell_type == "code":
                    exec(cell.source, names)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    finally:
        plt.close("all")


def test_parameters_arrive(tmp_path, out):
    done = execute(
        [
            tmp_path / "out.ipynb",
            *flags(methods="qat, mp(sparsity=0.5)", outputs=out, seed=3, **SMALL),
            "--stdout-file",
            "-",
        ],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = load_results(out)
    assert (
        table["methods"].tolist() == ["", "mp(sparsity=0.5),qat"]
        and table["seed"].tolist() == [3, 3]
        and table["limit"].tolist() == [64, 64]
    )
    for part in (
        "uncompressed l1",
        "smaller than",
        f"runs/{Run(methods='mp(sparsity=0.5),qat', seed=3, **SMALL).id}.json",
    ):
        assert part in done.stdout
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    assert any(
        "image/png" in o.get("data", {}) for c in notebook["cells"] for o in c.get("outputs", [])
    ), "a picture"


def test_without_an_output_path_and_redirected(tmp_path, out):
    done = execute(
        flags(
            methods="kd,qat",
            outputs=out,
            family=TINY,
            size="l1",
            limit=160,
            epochs=1,
            measure="file",
            recipe="v2(kd_transfer=50, min_steps=15)",
        ),
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["nbformat"] == 4
    table = load_results(out).set_index(["size", "methods"])
    assert [*table.index] == [("full", ""), ("l1", ""), ("l1", "kd,qat")]
    assert table.loc[("l1", "kd,qat"), "mb_onnx"] < 0.3 * table.loc[("l1", ""), "mb_onnx"] and table[
        "mb_onnx"
    ].isna().tolist() == [True, False, False]
    assert (
        table.loc[("l1", "kd,qat"), "train_examples"] > 160
        and table.loc[("l1", "kd,qat"), "teacher_score"] == table.loc[("full", ""), "score"]
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(metods="kd"), "did you mean 'methods'"),
        (dict(methods="dk"), "method='dk' is not allowed"),
        (dict(methods="mp(sparsity=1.0)"), "sparsity"),
        (dict(size="tiny"), "size='tiny'"),
        (dict(task="acept"), "did you mean 'accept'"),
        (dict(family="robert"), "family='robert'"),
        (dict(methods="qat(bits=1)"), "bits='1'"),
        (dict(measure="sped"), "did you mean 'speed'"),
    ],
)
def test_wrong_parameters_fail_before_anything_is_done(tmp_path, monkeypatch, wrong, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of("run", outputs=tmp_path / "out", **wrong) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "notebook, wrong, message",
    [
        ("run", dict(metods="kd"), "did you mean 'methods'"),
        ("grid", dict(size="l1"), "did you mean 'sizes'"),
        ("findings", dict(tolerence=1), "did you mean 'tolerance'"),
    ],
)
def test_papermill_exits_with_the_error(tmp_path, notebook, wrong, message):
    done = execute([tmp_path / "out.ipynb", *flags(**wrong)], tmp_path, notebook)
    assert (
        done.returncode != 0 and message in done.stderr and [*tmp_path.iterdir()] == [tmp_path / "out.ipynb"]
    ), done.stderr[-1500:]


@pytest.mark.parametrize(
    "notebook, wrong, message",
    [
        ("ablations", dict(sizes="l1"), "did you mean 'size'"),
        ("ablations", dict(make=False), "144 of 144 rows are missing"),
        ("ablations", dict(task="accept"), "parameter='task'"),
        ("speed", dict(mesure="all"), "did you mean 'measure'"),
        ("speed", dict(measure="trainin"), "did you mean 'training'"),
        ("figure1", dict(task="accept"), "did you mean 'tasks'"),
        ("table1", dict(tolerence=1), "did you mean 'tolerance'"),
        ("table1", dict(size_col="mb_disk"), "no column mb_disk"),
        ("findings", dict(tasks="cola"), "combcomp grid"),
        ("findings", dict(tolerance=-1), "tolerance -1"),
        ("explore", dict(tolerence=1), "did you mean 'tolerance'"),
        ("figure1", dict(limits="acept=5"), "task:number"),
        ("grid", dict(size="l1"), "did you mean 'sizes'"),
        ("grid", dict(limits="accept=few", dry_run=True), "task:number"),
        ("grid", dict(engine="rai", dry_run=True), "did you mean 'ray'"),
        ("grid", dict(methods="qat; kd,mpp", dry_run=True), "did you mean 'mp'"),
    ],
)
def test_result_notebooks_tell_what_is_wrong(tmp_path, monkeypatch, notebook, wrong, message):
    monkeypatch.chdir(tmp_path)
    known = papermill.inspect_notebook(str(REPO / "nbs" / f"{notebook}.ipynb"))
    assert known and all(p["help"] for p in known.values())
    where = (
        dict(outputs=tmp_path / "empty")
        if "outputs" in known
        else {k: v for k, v in dict(results=REPO / "outputs", into=tmp_path).items() if k in known}
    )
    assert message in error_of(notebook, **where, **wrong)


def test_a_small_grid(tmp_path, out, capsys):
    what = GRID | dict(methods="mp; ptq")
    assert error_of("grid", **what, outputs=tmp_path / "dry", dry_run=True) is None
    assert "2 runs" in capsys.readouterr().out and not (tmp_path / "dry").exists()
    done = execute(
        [tmp_path / "out.ipynb", *flags(**what, outputs=out, workers=2), "--stdout-file", "-"],
        tmp_path,
        "grid",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "[3/3]" in done.stdout
        and "left" in done.stdout
        and load_results(out)["methods"].tolist() == ["", "mp", "ptq"]
    )
    images = [
        o
        for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"]
        for o in c.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert len(images) == 2, "a map before and a map after"


def test_a_grid_with_a_failed_run_exits_with_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    done = execute(
        [
            tmp_path / "out.ipynb",
            *flags(
                outputs=tmp_path / "out",
                family=tmp_path / "empty",
                sizes="l1",
                tasks="accept",
                methods="none; mp",
                limits=64,
                epochs=1.0,
            ),
        ],
        tmp_path,
        "grid",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert (
        done.returncode != 0
        and "2 of 2 runs were not made" in done.stderr
        and len([*(tmp_path / "out" / "failures").iterdir()]) == 2
    )


def test_a_lost_parameters_tag_is_noticed(tmp_path):
    "Without the tag papermill puts its values above the defaults, and they are lost: that is why test_repo demands the tag"
    notebook = json.loads((REPO / "nbs" / "run.ipynb").read_text())
    inferred = papermill.inspect_notebook(str(REPO / "nbs" / "run.ipynb"))
    assert set(inferred) == {*Run.__dataclass_fields__, "measure", "report_to", "force", "outputs"} and all(
        p["help"] for p in inferred.values()
    )
    for c in notebook["cells"]:
        c["metadata"] = {}
    (tmp_path / "untagged.ipynb").write_text(json.dumps(notebook))
    assert papermill.inspect_notebook(str(tmp_path / "untagged.ipynb")) == {}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    "Released rows of two sizes and three combinations on one task, and their predictions"
    folder = tmp_path_factory.mktemp("few")
    table = load_results(own=False).query(
        "recipe == 'v2' and split == 'validation' and task == 'accept' and limit == 1000 and batch_size == 16 and seed == 0 and size in ['l2', 'l1'] and methods in ['', 'kd', 'qat']"
    )
    for id in table["id"]:
        predicted, labels = load_predictions(id)
        save_predictions(id, np.eye(2)[predicted], labels, folder)
    table.to_csv(folder / "results.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    "A kernel for one notebook after the other, as libraries load in seconds; `%reset` clears its names"
    client = NotebookClient(new_notebook(), timeout=600, kernel_name="python3", store_widget_state=False)
    env = {**os.environ, "IN_TEST": "1", "TMPDIR": str(tmp_path_factory.mktemp("kernel"))}
    with client.setup_kernel(env=env, cwd=str(REPO / "nbs")):
        yield client


STUDY = dict(tasks="accept", limits="accept=1000")


@pytest.mark.parametrize(
    "notebook, parameters",
    [
        ("run", dict(methods="qat", **SMALL)),
        ("grid", dict(methods="mp", **GRID)),
        ("explore", STUDY),
        ("table1", STUDY),
        ("figure1", STUDY),
        ("findings", STUDY),
        ("recipe", {}),
        ("ablations", dict(make=False)),
        ("speed", {}),
    ],
)
def test_a_notebook_runs_twice_in_one_kernel(kernel, request, notebook, parameters):
    "Run All, and Run All again: what the first pass left in the kernel is no unknown parameter"
    if notebook in ("run", "grid"):
        parameters = dict(parameters, outputs=str(request.getfixturevalue("out")))
    if parameters is STUDY:
        parameters = dict(parameters, results=str(request.getfixturevalue("few")))
    notebook = parameterize_notebook(load_notebook_node(str(REPO / "nbs" / f"{notebook}.ipynb")), parameters)
    first, second = notebook.cells, copy.deepcopy(notebook.cells)
    for i, cell in enumerate(second):
        cell.id = f"again-{i}"
    fresh = ["%reset -f", "assert not [name for name in globals() if 'parameters' in name]"]
    notebook.cells = [*map(new_code_cell, fresh), *first, *second]
    kernel.nb = notebook
    kernel.reset_execution_trackers()
    for i, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, i)
    words = lambda cells: [
        o["data"]["text/markdown"]
        for c in cells
        for o in c.get("outputs", [])
        if "text/markdown" in o.get("data", {})
    ]
    assert words(second) == words(first)
