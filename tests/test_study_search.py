"The search for the smallest model: what is ahead, what is confirmed, budgets that nothing keeps, interrupted searches"

import shutil, subprocess, sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import transformers
from conftest import REPO, code_of

from combcomp import cli, load
from combcomp.models.encoders import source
from combcomp.ship.latency import bench
from combcomp.ship.packed_file import inspect, unpack
from combcomp.study.search import Goal, Search, candidates, halve, in_order, savings, smallest
from combcomp.study.sweep import GridFailed

QUIET = lambda *args, **kwargs: None
LOW = "qat(step=0.5),vocab(rows=3000)"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A very small BERT, and texts whose label is one of their words, or a number in them"
    folder = tmp_path_factory.mktemp("search")
    shape = dict(num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_attention_heads=2)
    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**shape))
    model.save_pretrained(folder / "bert")
    shutil.copy(Path(source("minilm", "l1")) / "vocab.txt", folder / "bert")
    words = [f"number {i} is {'good' if i % 2 else 'bad'}" for i in range(200)]
    (folder / "classes.csv").write_text(
        "\n".join(["text,label", *(f"{w},{'yes' if i % 2 else 'no'}" for i, w in enumerate(words))])
    )
    (folder / "numbers.csv").write_text(
        "\n".join(["text,label", *(f"{w},{i % 2 + 0.25}" for i, w in enumerate(words))])
    )
    return folder


def options(place, **changed):
    given = dict(family=str(place / "bert"), sizes="full,l1", methods=f"{LOW}; kd,qat", log=QUIET)
    return given | dict(outputs=place / "out") | changed


@pytest.fixture(scope="module")
def found(place):
    return smallest(f"file:{place / 'classes.csv'}", within=20, **options(place))


def test_the_smallest_that_keeps_the_score_is_found_and_confirmed(found):
    assert found.fits and found.best["methods"] == LOW
    assert found.best["split"] == "validation" and set(found.tried["split"]) == {"heldout"}
    assert found.best["reference"] - found.best["score"] <= 20
    assert found.file.stat().st_size / 1e6 == found.best["mb_file"]
    assert unpack(found.file).config.vocab_size == 3000


def test_every_round_trains_fewer_for_longer(found):
    rounds = found.tried.groupby("share")
    assert rounds.size().to_dict() == {0.25: 4, 1.0: 2} and rounds["steps"].max().is_monotonic_increasing
    whole = found.tried[found.tried["share"] == 1]
    assert (whole["recipe"] == "v2").all()  # rows as any others


def test_a_search_that_was_made_is_not_made_again_and_another_space_goes_on(place, found, monkeypatch):
    task, said = f"file:{place / 'classes.csv'}", []
    monkeypatch.setattr("combcomp.study.runner.compress", lambda *a, **k: pytest.fail("trained again"))
    again = smallest(task, within=20, **options(place))
    assert str(again) == str(found)
    monkeypatch.undo()
    log = lambda *text, **kwargs: said.append(" ".join(text))
    more = smallest(
        task, within=20, **options(place, methods=f"{LOW}; kd,qat; mp,{LOW}", sizes="l1", log=log)
    )
    assert {*more.tried["methods"]} > {LOW} and any("4 runs, 3 done; 1 to make" in line for line in said)


def test_what_is_ahead():
    trial = pd.DataFrame(dict(score=[80.0, 79.6, 79.4, 70.0], mb_file=[6.0, 5.0, 4.0, 3.0]))
    assert in_order(trial, 79.5, Goal()).index.tolist() == [1, 0, 2, 3]
    assert in_order(trial, 90, Goal()).index.tolist() == [0, 1, 2, 3]  # nothing reaches it: by score
    assert in_order(trial, 79.5, Goal(megabytes=5.5)).index.tolist() == [1, 2, 0, 3]
    fast = trial.assign(ms_openvino=[9.0, 3.0, 2.0, 1.0])
    assert in_order(fast, 79, Goal(milliseconds=2)).index.tolist() == [2, 0 + 1, 3, 0]


def test_a_candidate_that_cannot_be_trained_is_left_out(place):
    "A vocabulary of ten pieces has no room for the letters"
    said = []
    log = lambda *text, **kwargs: said.append(" ".join(text))
    search = Search(f"file:{place / 'classes.csv'}", family=str(place / "bert"), rounds=(0.5,))
    table = halve(search, [("l1", "vocab(rows=10)"), ("l1", LOW)], place / "out", log=log)
    assert table["methods"].tolist() == [LOW] and any("rows='10'" in line for line in said)
    with pytest.raises(GridFailed, match="none of 1 candidates"):
        halve(search, [("l1", "vocab(rows=10)")], place / "out", log=QUIET)


def test_numbers_and_time(place, monkeypatch):
    "Each candidate is timed in a few rounds, between which the processor rests"
    pytest.importorskip("openvino")
    monkeypatch.setattr("combcomp.study.runner.bench", partial(bench, rounds=3))
    task = f"file:{place / 'numbers.csv'}"
    found = smallest(task, within=100, milliseconds=1000, **options(place, methods=LOW, sizes="l1"))
    assert found.fits and found.best["ms_openvino"] < 1000 and found.best["metric"] == "pearson"
    assert found.best["lower"] <= found.best["difference"] <= found.best["upper"] and " ms" in str(found)


def test_a_budget_that_nothing_keeps(place, found, tmp_path, capsys):
    words = ["smallest", "--task", f"file:{place / 'classes.csv'}", "--family", str(place / "bert")]
    words += ["--sizes", "full,l1", "--methods", f"{LOW}; kd,qat", "--outputs", str(place / "out")]
    words += ["--workers", "1"]
    assert cli.main([*words, "--within", "20", "--megabytes", "0.01"]) == 3
    out = capsys.readouterr().out
    assert "nothing fits" in out and "nearest is l1" in out
    small = tmp_path / "small.safetensors"
    assert cli.main([*words, "--within", "20", "-o", str(small)]) == 0
    assert inspect(small)["bytes"] == found.file.stat().st_size
    assert cli.main([*words, "--within", "20", "-o", str(small)]) == 2  # it exists
    assert "force" in capsys.readouterr().err
    assert cli.main([*words, "--within", "20", "-o", str(tmp_path / "hub")]) == 0
    assert load(tmp_path / "hub").predict("number 3 is bad") and (tmp_path / "hub" / "README.md").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    assert cli.main([*words, "--within", "20", "-o", str(tmp_path / "other"), "--force"]) == 2
    assert (tmp_path / "other" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(within=-1), "within='-1'"),
        (dict(megabytes=0), "megabytes='0'"),
        (dict(milliseconds="fast"), "milliseconds='fast'"),
        (dict(seeds=0), "seeds=.0."),
        (dict(sizes="l9"), "size='l9'"),
        (dict(methods="kd; qqat"), "did you mean 'qat'"),
        (dict(family="nobody"), "family='nobody'"),
        (dict(task="acept"), "did you mean 'accept'"),
    ],
)
def test_wrong_values_are_named_before_anything_is_trained(tmp_path, changed, message):
    given = dict(task="accept", outputs=tmp_path / "out", log=QUIET) | changed
    with pytest.raises(ValueError, match=message):
        smallest(given.pop("task"), **given)
    assert not (tmp_path / "out" / "runs").exists()


def test_the_default_space_can_be_trained():
    "Every candidate is a run, in all families, and none twice"
    for family in ("minilm", "e5", "bert"):
        every = candidates(family)
        assert len({*every}) == len(every) and all(Search("accept", family=family).run(*c) for c in every)


def test_the_factors_of_the_steps_multiply_to_the_whole(found):
    steps = found.savings
    assert steps["factor"].prod() == pytest.approx(steps["megabytes"].iloc[0] / steps["megabytes"].iloc[-1])
    assert steps["megabytes"].iloc[-1] == found.best["mb_file"] and len(steps) >= 4
    same = savings(found.file, found.file)
    assert len(same) == 3 and same["megabytes"].iloc[-1] == found.best["mb_file"]


def test_interrupted_by_ctrl_c_it_goes_on(place, tmp_path):
    "A process that is killed in the second round; the next one has its rows"
    code = f"""
import os, combcomp.study.search as search
from combcomp.study.search import smallest
seen = []
def log(*text, **kwargs):
    seen.extend(t for t in text if t.startswith("round 2"))
    if seen:
        os._exit(9)
smallest("file:{place / 'classes.csv'}", 20, family="{place / 'bert'}", sizes="l1", methods="{LOW}",
         outputs="{tmp_path}", log=log)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True).returncode == 9
    before = {*(tmp_path / "runs").iterdir()}
    assert len(before) == 2  # the reference and the first round
    found = smallest(
        f"file:{place / 'classes.csv'}", 20, **options(place, sizes="l1", methods=LOW, outputs=tmp_path)
    )
    assert found.fits and before < {*(tmp_path / "runs").iterdir()}


def test_the_zoo_has_folders_and_a_table(place, found, tmp_path):
    "The notebook zoo on this search: nothing is trained again, and both models are timed"
    pytest.importorskip("openvino")
    names = dict(display=QUIET)
    given = dict(measure=True, tasks=f"file:{place / 'classes.csv'}", outputs=str(place / "out"), rounds=2)
    given |= dict(within=20.0, family=str(place / "bert"), sizes="full,l1", methods=f"{LOW}; kd,qat")
    given |= dict(limit=None)
    for i, cell in enumerate(code_of(REPO / "nbs" / "zoo.ipynb")):
        exec(cell, names)
        names.update({} if i else given)
    row = pd.read_csv(place / "out/tables/zoo.csv").iloc[0]
    assert row["fits"] and row["mb_file"] == found.best["mb_file"] < row["mb_whole"]
    assert min(row["ms"], row["ms_whole"]) > 0 and row["faster"] == pytest.approx(
        row["ms_whole"] / row["ms"], rel=0.5
    )
    (folder,) = (place / "out/zoo").iterdir()
    assert load(folder).predict("number 3 is bad") and "vocab" in (folder / "README.md").read_text()
