"A method registered from outside the package works in every room, and is gone when it is removed"

import json, pickle, sys
from dataclasses import asdict, dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import tiny_family

from combcomp import cli
from combcomp.compress.methods import Method
from combcomp.compress.training import build
from combcomp.models.encoders import load_tokenizer, predict
from combcomp.data.loading import load_task
from combcomp.data.tasks import task_of
from combcomp.share.model_card import card
from combcomp.ship.packed_file import unpack
from combcomp.spec import (
    canonical,
    describe_registry,
    KD,
    METHODS,
    MethodInfo,
    parse,
    register,
    register_task,
    restore_registry,
    Run,
    subset_of,
    SUBSETS,
    subsets,
    table_order,
    Task,
    TASKS,
    unregister,
)
from combcomp.study.explorer import Choice, answer, offered
from combcomp.study.figures import colour_of, COLOURS, interaction_plot, marker_of, reduction_map, score_size
from combcomp.study.recommendation import recommend
from combcomp.study.reductions import combination, interactions, max_reduction, study_rows, trainings
from combcomp.study.runner import model_file, run
from combcomp.study.plan import configurations, study
from combcomp.study.schedule import estimate, ordered, parts, ptq_base, steps
from combcomp.study.store import read_row
from combcomp.study.sweep import grid

QUIET = lambda *args, **kwargs: None
TINY = tiny_family()
ALL = (
    "",
    "kd",
    "mp",
    "qat",
    "tilt",
    "kd,mp",
    "kd,qat",
    "kd,tilt",
    "mp,qat",
    "mp,tilt",
    "qat,tilt",
    "kd,mp,qat",
    "kd,mp,tilt",
    "kd,qat,tilt",
    "mp,qat,tilt",
    "kd,mp,qat,tilt",
)


@dataclass(frozen=True)
class Tilt:
    "A bias towards the first class in training"

    strength: float = 0.5


class Tilted(Method):
    hooks = []

    def __init__(self, options):
        self.options = options

    def prepare(self, model):
        self.hooks.append("prepare")

    def loss(self, loss, out, batch):
        self.hooks.append("loss")
        return loss - self.options.strength * out.logits[:, 0].mean() * 1e-3

    def step(self, progress):
        self.hooks.append("step")

    def convert(self, model):
        self.hooks.append("convert")


@pytest.fixture
def tilt():
    "The method, registered for one test"
    info = MethodInfo(Tilt, f"{__name__}:Tilted", order=20, label="tilting", slows="examples")
    register(info)
    Tilted.hooks = []
    yield info
    if "tilt" in METHODS:
        unregister("tilt")


def table(methods=ALL, sizes=dict(l6=90.0, l2=60.0, l1=55.0), tasks=("accept", "wic")):
    "Rows of a study in which each method but kd makes a model a third smaller, and costs a point"
    rows = []
    for i, (size, mb) in enumerate(sizes.items()):
        for task in tasks:
            for m in methods:
                names = [n for n in m.split(",") if n not in ("", "kd")]
                row = asdict(Run(size=size, task=task, methods=m))
                mega = mb * (2 / 3) ** len(names)
                rows.append(
                    row
                    | dict(
                        id=f"{size}{task}{m}",
                        score=90 - 4 * i - len(names) / 4,
                        metric="accuracy",
                        majority=50.0,
                        mb_file=mega,
                        mb_paper=mega,
                        train_seconds=100.0,
                        seconds=100.0,
                    )
                )
    return pd.DataFrame(rows)


def test_it_parses_and_runs_have_ids(tilt):
    assert parse("tilt(strength=1), kd") == ((KD(), Tilt(1)),)
    assert canonical("tilt(strength=0.5) > qat") == "tilt > qat"
    assert subset_of("ptq,tilt(strength=2)") == "qat,tilt"
    with pytest.raises(ValueError, match="did you mean 'tilt'"):
        parse("titl")
    with pytest.raises(ValueError, match="did you mean 'strength'"):
        parse("tilt(strenth=2)")
    one, other = Run(methods="qat, tilt"), Run(methods="tilt(strength=2),qat")
    assert one.methods == "qat,tilt" and one.id != other.id and one.combination.options(Tilt) == Tilt()
    assert subsets(["kd", "mp", "qat", "tilt"]) == ALL and sorted(ALL[::-1], key=table_order) == [*ALL]
    assert "tilting" in cli.parser()._subparsers._group_actions[0].choices["run"].format_help()


def test_it_is_applied_in_its_place(tilt):
    "Between kd and mp, although it is last by name"
    names = [type(m).__name__ for m in build(parse("tilt,qat,mp,kd")[0])]
    assert names == ["Distill", "Tilted", "Prune", "Quantize"]


def test_it_trains_and_is_packed(tilt, out):
    few = dict(family=TINY, size="l1", limit=64, epochs=1, batch_size=16)
    cfg = Run(methods="tilt,mp,qat", **few)
    run(Run(**few), out, log=QUIET)
    row = run(cfg, out, log=QUIET)
    assert row["methods"] == "mp,qat,tilt" and row["sparsity"] > 0.3
    assert [Tilted.hooks[0], Tilted.hooks[-1]] == ["prepare", "convert"]
    assert Tilted.hooks.count("loss") == row["steps"] == 4
    model, task = unpack(model_file(cfg, out)), task_of("supersense")
    data = load_task("supersense", limit=64, cache=out / "cache")["validation"]
    logits = predict(model, load_tokenizer(TINY, "l1"), data, task.texts)
    assert (logits.argmax(-1) == np.array(data["label"])).mean() * 100 == pytest.approx(row["score"])
    text = card(row, out)
    assert "- *tilting*.\n" in text and "- tilting\n" in text and "*magnitude pruning*" in text
    rounded = Run(methods="tilt,ptq", **few)
    assert ptq_base(rounded) == Run(methods="tilt", **few)
    assert run(rounded, out, log=QUIET)["methods"] == "ptq,tilt"


def test_it_is_planned(tilt):
    todo = [Run(methods=m) for m in ("tilt,ptq", "kd,tilt")]
    assert ordered(todo)[0] == Run(size="l6") and Run(methods="tilt") in ordered(todo)
    plain, slow = parts(Run()), parts(Run(methods="tilt"))
    assert len(plain) == len(slow) and sum(slow) == pytest.approx(sum(plain) + plain[0])
    assert steps(todo[1]) > steps(Run())
    assert all(np.isfinite(estimate(todo, table())))
    assert len(configurations(combinations=ALL)) == 24
    assert [r.methods for r in study(sizes="l1", tasks="accept", methods=";".join(ALL))] == [*ALL]


def test_it_is_in_figures_with_a_look_of_its_own(tilt):
    rows = table()
    looks = {(colour_of(m), marker_of(m)) for m in ALL}
    assert len({c for c, _ in looks}) == len(looks) == 16 and all(colour_of(m) == COLOURS[m] for m in SUBSETS)
    ax = score_size(rows)
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {m or "none" for m in ALL}
    assert len(reduction_map(max_reduction(rows)).get_yticklabels()) == 16
    assert len(interaction_plot(interactions(rows)).axes) == 11
    plt.close("all")


def test_it_is_counted_in_statistics(tilt):
    rows = table()
    assert len(study_rows(rows)) == len(rows) == trainings(rows)["runs"].sum()
    assert {*max_reduction(rows)["methods"]} == {*ALL}
    effects = interactions(rows, tolerance=1)["effect"].unique()
    assert len(effects) == 11 and "kd x tilt" in effects and "kd x mp x qat x tilt" in effects
    assert len(interactions(rows, kind="factorial")["effect"].unique()) == 15
    assert combination("mp(sparsity=0.4),tilt") == "mp,tilt"
    assert combination("tilt(strength=2)") == "tilt(strength=2)"
    best = recommend(rows, megabytes=20)
    assert len(best) and best["methods"].str.contains("tilt").any()


def test_it_is_in_the_explorer(tilt):
    rows = table()
    assert offered(rows).methods == [*ALL]
    picture, best, reductions = answer(rows, None, Choice(("accept", "wic"), ALL, "mb_file", megabytes=30))
    assert "tilt" in best.data and reductions.data.count("tilt") == 8 and picture.data[:4] == b"\x89PNG"
    plt.close("all")


def test_a_method_that_is_not_registered_is_refused(tilt):
    "No function leaves its rows out in silence, and the message says what to do"
    rows = table()
    unregister("tilt")
    assert "tilt" not in METHODS and study_rows(rows[rows["methods"].isin(SUBSETS)]).shape[0] == 48
    for refuse in (
        study_rows,
        trainings,
        max_reduction,
        interactions,
        score_size,
        offered,
        lambda rows: recommend(rows, megabytes=20),
        lambda rows: estimate([Run()], rows),
        lambda rows: card(rows[rows["methods"] == "tilt"].iloc[0].to_dict()),
    ):
        with pytest.raises(ValueError, match="method='tilt' is not allowed.*`register` adds"):
            refuse(rows)
    for text in ("tilt", "kd,tilt"):
        with pytest.raises(ValueError, match="method='tilt' is not allowed"):
            Run(methods=text)
    with pytest.raises(ValueError, match="name='tilt' is not allowed"):
        unregister("tilt")
    plt.close("all")


def test_wrong_registrations():
    @dataclass
    class Loose:
        x: int = 1

    @dataclass(frozen=True)
    class Bare:
        x: int

    @dataclass(frozen=True)
    class KD:
        pass

    for cls, message in ((Loose, "frozen"), (Bare, "defaults"), (KD, "combcomp.spec.KD"), (dict, "frozen")):
        with pytest.raises(ValueError, match=message):
            register(MethodInfo(cls, Tilted, order=1, label="x"))
    for field, value in dict(slows="steps", curve="y", form_of="qta").items():
        with pytest.raises(ValueError, match=f"{field}='{value}'"):
            register(MethodInfo(Tilt, Tilted, order=1, label="x", **{field: value}))
    assert [*METHODS] == ["kd", "mp", "qat", "ptq", "vocab"]
    with pytest.raises(ModuleNotFoundError):
        MethodInfo(Tilt, "no.such:Class", order=1, label="x").load()


@pytest.mark.parametrize("path", ["outputs/results.csv"])
def test_released_rows_keep_their_ids(repo, path):
    rows = pd.read_csv(repo / path, low_memory=False)
    rows = rows.astype(object).where(rows.notna(), None)
    for row in rows.to_dict("records"):
        fields = {k: row[k] for k in Run.__dataclass_fields__}
        fields |= dict(methods=row["methods"] or "", teacher=row["teacher"] or "")
        assert Run(**fields).id == row["id"]


MODULE = '''"A method and a task that are in a file of the user's own"
from dataclasses import dataclass
import datasets
from combcomp.compress.methods import Method

@dataclass(frozen=True)
class Lean:
    weight: float = 1e-3

class Leaning(Method):
    def __init__(self, options): self.options = options
    def loss(self, loss, out, batch): return loss - self.options.weight*out.logits[:, 0].mean()

def tones(task, cache):
    data = datasets.Dataset.from_dict(dict(text=["what a film", "such a bore"]*40, label=[1, 0]*40))
    return datasets.DatasetDict(train=data.select(range(60)), validation=data.select(range(60, 80)))
'''


@pytest.fixture
def tones(tmp_path, monkeypatch):
    "Runs with a method and a task of a module that only this process has on its path"
    (tmp_path / "of_their_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import of_their_own

    register(MethodInfo(of_their_own.Lean, of_their_own.Leaning, order=20, label="leaning"))
    register_task(Task("tones", ("text",), ("bad", "good"), data=of_their_own.tones))
    few = dict(family=TINY, size="l1", task="tones", epochs=1)
    yield [Run(methods=m, **few) for m in ("lean", "lean(weight=0.1),qat")]
    del TASKS["tones"], sys.modules["of_their_own"]
    unregister("lean")


def test_worker_processes_know_methods_and_tasks_from_outside(tones, out):
    table = grid(tones, out, workers=2, log=QUIET)
    assert [*table["id"]] == [r.id for r in tones] and {*table["task"]} == {"tones"}
    alone = run(tones[0], out / "alone", log=QUIET)
    assert model_file(tones[0], out).read_bytes() == model_file(tones[0], out / "alone").read_bytes()
    assert alone["score"] == table["score"][0]


def test_the_registry_as_json(tones):
    described = json.loads(json.dumps(describe_registry([*tones, Run(methods="kd")])))
    info, task = METHODS["lean"], TASKS["tones"]
    assert [m["implementation"] for m in described["methods"]] == ["of_their_own:Leaning"]
    assert [t["data"] for t in described["tasks"]] == ["of_their_own:tones"]
    restore_registry(described)
    assert METHODS["lean"].load() is info.load() and METHODS["lean"].options is info.options
    assert TASKS["tones"] == replace(task, data="of_their_own:tones")
    assert describe_registry([Run(methods="kd,qat")]) == dict(methods=[], tasks=[], path=[])
    with pytest.raises(ImportError, match="no_such:Class cannot be imported here .* install its module"):
        restore_registry(
            dict(methods=[dict(described["methods"][0], implementation="no_such:Class")], tasks=[], path=[])
        )


def test_a_form_of_another_method_travels_with_it(tones):
    import of_their_own

    @dataclass(frozen=True)
    class Leaner(of_their_own.Lean):
        pass

    Leaner.__module__, Leaner.__qualname__, of_their_own.Leaner = "of_their_own", "Leaner", Leaner
    register(MethodInfo(Leaner, of_their_own.Leaning, order=20, label="more of it", form_of="lean"))
    try:
        described = describe_registry([Run(methods="leaner")])
    finally:
        unregister("leaner")
    assert [m["options"] for m in described["methods"]] == ["of_their_own:Lean", "of_their_own:Leaner"]


@pytest.mark.parametrize("options", [dict(workers=2), dict(engine="ray")])
@pytest.mark.parametrize(
    "module, why", [("__main__", "in a script or a notebook"), ("made_up", "no module on the path")]
)
def test_code_that_cannot_be_imported_elsewhere_is_refused_before_training(tones, out, options, module, why):
    import of_their_own

    class Leaning(of_their_own.Leaning):
        pass

    Leaning.__module__, Leaning.__qualname__ = module, "Leaning"
    register(replace(METHODS["lean"], implementation=Leaning))
    message = f"method 'lean': {module}:Leaning is .*{why}.*put it into a module.*workers=1"
    with pytest.raises(ValueError, match=message):
        grid(tones, out, log=QUIET, **options)
    assert not (out / "runs").exists() and not (out / "leases").exists()


def test_functions_are_refused_too(tones):
    TASKS["tones"] = replace(TASKS["tones"], data=lambda task, cache: None)
    with pytest.raises(ValueError, match="task 'tones': .*<lambda> is defined inside a function"):
        describe_registry(tones)
    assert describe_registry([Run(methods="lean")])["tasks"] == []


def test_a_ray_worker_knows_them_too(tones, out, run_py):
    "What Ray does in another process: it unpickles the run and calls `on_worker`"
    (out / "sign").touch()
    code = """
import json, os, pickle
from combcomp.study.cluster import on_worker
run = pickle.loads(bytes.fromhex(os.environ["RUN"]))
how = (), 60.0, "none", json.loads(os.environ["REGISTRY"])
print("state", on_worker(run, os.environ["FOLDER"], "sign", None, *how)[0])
"""
    said = run_py(
        code, RUN=pickle.dumps(tones[0]).hex(), FOLDER=str(out), REGISTRY=json.dumps(describe_registry(tones))
    )
    assert said.split()[-2:] == ["state", "done"] and read_row(tones[0].id, out)["task"] == "tones"
