"Own data beyond what the notebook shows: other processes, moved and edited files, every kind of task through a whole run, and files made to confuse"

import csv, json, os, shutil, subprocess, sys
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from IPython.utils.capture import capture_output

from conftest import tiny_family
from combcomp.spec import portable, resolve_task, Run, TASKS
from combcomp.study.explorer import explorer
from combcomp.ship.runtimes import export, load_exported
from combcomp.study.runner import model_file, run
from combcomp.study.plan import runs
from combcomp.study.sweep import grid
from combcomp.models.encoders import load_tokenizer
from combcomp.data.text_files import (
    guess_columns,
    held_back,
    own,
    own_data,
    own_task,
    own_unlabelled,
    read_columns,
    resolve,
)
from combcomp.ship.packed_file import unpack
from combcomp.study.store import load_predictions, load_results, read_row
from combcomp.study.reductions import study_rows
from combcomp.data.loading import load_task, transfer_note, transfer_set

silent = lambda *a, **k: None
TINY = tiny_family()


def words(n):
    "Rows that are quickly learnt: glosses of persons and of animals"
    CATEGORIES = TASKS["supersense"].labels
    data = [(r["gloss"], CATEGORIES[r["label"]]) for r in load_task("supersense", 800)["train"]]
    return [r for r in data if r[1] in ("person", "animal")][:n]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    "A CSV file as spreadsheets write it"
    path = tmp_path_factory.mktemp("own") / "re views.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as f:
        csv.writer(f, delimiter=";").writerows(
            [("No", "Review", "Verdict, final"), *((i, t, y) for i, (t, y) in enumerate(words(90)))]
        )
    return path


def test_the_id_is_the_same_wherever_the_file_lies_and_another_when_it_was_edited(reviews, tmp_path, run_py):
    cfg = Run(task=f"file:{reviews}?label=Verdict, final", methods="kd,qat")
    assert cfg.id == resolve_task(cfg).id and "#" not in cfg.task
    (tmp_path / "deep").mkdir()
    shutil.copy(reviews, tmp_path / "deep/other name.csv")
    there = run_py(
        f"import os; os.chdir({str(tmp_path)!r})\nfrom combcomp.spec import resolve_task, Run\nr = resolve_task(Run(task='file:deep/other name.csv?label=Verdict, final', methods='kd,qat')); print(r.id, r.task)",
        PYTHONHASHSEED="5",
    )
    assert (
        there.split()[0] == cfg.id and "?text=Review&label=Verdict%2C final#" in there and "," not in cfg.task
    )
    with open(tmp_path / "deep/other name.csv", "a") as f:
        f.write("91;one more;person\n")
    assert (
        Run(task=f"file:{tmp_path/'deep/other name.csv'}?label=Verdict, final", methods="kd,qat").id != cfg.id
    )


def test_a_row_is_read_back_when_the_file_is_gone_and_its_task_from_the_copy(reviews, out):
    here = out / "mine.csv"
    shutil.copy(reviews, here)
    cfg = resolve_task(
        Run(family=TINY, size="l1", task=f"file:{here}?label=Verdict, final", limit=32, epochs=1)
    )
    row = run(cfg, out, log=silent)
    here.unlink()
    assert read_row(cfg.id, out) == row and Run(**{k: row[k] for k in asdict(cfg)}) == cfg
    assert load_task(row["task"], cache=out / "cache")["validation"].num_rows == row["eval_examples"] == 18
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_task(row["task"], cache=out / "elsewhere")
    header = unpack(model_file(cfg, out)).config.combcomp
    assert header["task"] == portable(cfg.task) and str(out) not in json.dumps(header)


def test_kd_mp_qat_through_grid_export_and_statistics(reviews, out):
    task, few = own(reviews, label="Verdict, final"), dict(family=TINY, limit=48, epochs=1, batch_size=8)
    table = grid(runs(["l1"], [task], ["", "kd,mp,qat"], **few), out, workers=1, log=silent)
    rows = study_rows(load_results(out), TINY, tasks=task, limits=48, epochs=1, batch_size=8)
    assert len(table) == len(rows) == 2
    with capture_output():
        controls = explorer(rows, tasks=f"file:{reviews}?label=Verdict%2C final")
    assert [box.description for box in controls.tasks.values()] == [reviews.name]
    cfg = Run(size="l1", task=task, methods="kd,mp,qat", **few)
    about = export(unpack(model_file(cfg, out)), out / "shipped", "onnx", load_tokenizer(TINY, "l1"), task)
    assert about["parity"]["equal"] >= 0.99 and load_exported(out / "shipped").predict(["a fine text"])[0][
        "label"
    ] in ("person", "animal")


def test_pairs_and_numbers_through_a_whole_run(out):
    data = load_task("glosssim", 48)["train"]
    rows = [
        dict(sentence1=a, sentence2=b, similarity=round(float(y), 3))
        for a, b, y in zip(data["gloss1"], data["gloss2"], data["label"])
    ]
    (out / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cfg = Run(family=TINY, size="l1", task=f"file:{out/'pairs.jsonl'}", methods="qat", epochs=1)
    row = run(cfg, out, log=silent)
    assert row["metric"] == "pearson" and "kind=regression" in row["task"] and row["majority"] == 0
    predicted, labels = load_predictions(row["id"], out)
    assert (
        predicted.dtype == np.float32
        and len(labels) == 10
        and {*np.round(labels.astype(float), 3).tolist()}
        <= {*np.round([r["similarity"] for r in rows], 3).tolist()}
    )


def test_another_language_is_not_augmented_and_says_so(out, capsys):
    texts = [
        f"{wer} {was} {wann} in der Stadt gesehen"
        for wer in ("Der Hund wurde", "Die alte Frau wurde", "Mein Bruder hat")
        for was in ("von einem Nachbarn", "mit dem roten Auto", "die ganze Familie")
        for wann in ("gestern Abend", "am Montag", "noch nie", "oft")
    ]
    with open(out / "deutsch.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("text", "label"), *((t, "ja" if "von" in t else "nein") for t in texts)])
    said = []
    few = dict(family=TINY, size="l1", methods="kd", epochs=2, batch_size=4)
    cfg = resolve_task(Run(task=f"file:{out/'deutsch.csv'}", **few))
    row = run(cfg, out, log=lambda *a, **k: said.append(" ".join(map(str, a))))
    assert "language=other" in cfg.task and row["train_examples"] == len(
        own_data(cfg.task, out / "cache")["train"]
    )
    assert any("no augmented copies: synonyms are English" in s for s in said)


def test_papermill_takes_a_file(reviews, out):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "nbs/run.ipynb",
            str(out / "run.ipynb"),
            "-p",
            "task",
            f"file:{reviews}?label=Verdict, final",
            "-p",
            "methods",
            "qat",
            "-p",
            "family",
            TINY,
            "-p",
            "size",
            "l1",
            "-p",
            "limit",
            "32",
            "-p",
            "epochs",
            "1",
            "-p",
            "outputs",
            str(out),
            "--no-progress-bar",
        ],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {*load_results(out)["methods"]} == {"", "qat"} and "re views.csv" in (
        out / "run.ipynb"
    ).read_text()


def test_equal_texts_stay_on_one_side_and_every_class_is_learnt():
    rng = np.random.default_rng(0)
    for n, classes in ((30, 2), (200, 3), (500, 12)):
        texts, labels = [f"t{v}" for v in rng.integers(0, n // 2, n)], rng.integers(0, classes, n)
        held = held_back(texts, labels)
        assert not {t for t, h in zip(texts, held) if h} & {t for t, h in zip(texts, held) if not h}
        assert {*labels[~held]} == {*labels} and 0.05 < held.mean() < 0.4
        assert (held == held_back(texts, labels)).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet"]))
def test_no_file_makes_anything_but_a_clear_error(tmp_path, data, ending):
    path = tmp_path / f"f{ending}"
    for content in (data, b"text,label\n" + data, b'{"text": "a", "label": 1}\n' + data):
        path.write_bytes(content)
        try:
            resolve(f"file:{path}")
        except ValueError as e:
            assert path.name in str(e) and len(str(e)) < 600


@pytest.mark.parametrize(
    "content, told",
    [
        ('text,label\n"never closed,a\nb,c\n', "row 1"),
        ("text,label\n\n\na fine text,1\n", "1 different texts|all 1 rows"),
        ("[1, 2]", "row 1 is '1'"),
        ("[{}", "cannot be read as JSON"),
        ('{"text": {"a": 1}, "label": 1}\n{"text": "x", "label": 2}', "row 1, column 'text'"),
        ('{"text": "x", "label": NaN}\n{"text": "y", "label": 2}', "row 1 has nothing in column 'label'"),
    ],
)
def test_other_mistakes_name_their_place(tmp_path, content, told):
    path = tmp_path / ("f.csv" if content.startswith("text") else "f.json")
    path.write_text(content)
    with pytest.raises(ValueError, match=told):
        resolve(f"file:{path}")


def test_crlf_quotes_and_line_breaks_in_a_text(tmp_path):
    (tmp_path / "f.csv").write_bytes(b'text,label\r\n"a ""quoted"" text,\r\nof two lines",x\r\nplain,y\r\n')
    columns, _ = read_columns(tmp_path / "f.csv")
    assert columns["text"] == ['a "quoted" text,\r\nof two lines', "plain"] and guess_columns(columns) == (
        ("text",),
        "label",
    )


def test_class_names_and_order_of_a_data_set_are_kept(tmp_path, capfd):
    import datasets

    names = ["zebra", "ape", "fox"]
    d = datasets.Dataset.from_dict(
        dict(text=[f"text number {i}" for i in range(30)], label=[i % 3 for i in range(30)]),
        features=datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names)),
    )
    task = own(datasets.DatasetDict(train=d, validation=d.select(range(9))), outputs=tmp_path)
    assert own_task(task).labels == tuple(names) and own_data(task, tmp_path)["validation"]["label"][:3] == [
        0,
        1,
        2,
    ]
    assert own(datasets.DatasetDict(train=d, validation=d.select(range(9))), outputs=tmp_path) == task
    assert not any(capfd.readouterr()), "no bar of a library"


# Texts without labels


@pytest.fixture
def tables(tmp_path):
    "A folder: 80 glosses with labels, the same and ten without, and 40 lines without, three of them not new"
    rows = words(130)
    with open(tmp_path / "glosses.csv", "w", newline="", encoding="utf-8") as f:
        bare = [(t, "") for t, _ in rows[80:90]]
        csv.writer(f).writerows([("text", "label"), *rows[:80], *bare, ("", "person")])
    with open(tmp_path / "labelled.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("text", "label"), *rows[:80]])
    more = [t for t, _ in rows[90:127]]
    held = own_data(f"file:{tmp_path/'labelled.csv'}", tmp_path / "cache")
    known = [held["validation"]["text"][0].upper(), held["train"]["text"][0], more[0] + " "]
    (tmp_path / "more.txt").write_text("\n".join(more + known) + "\n\n", encoding="utf-8")
    return tmp_path


def test_texts_of_a_second_file(tables):
    name = resolve(f"file:{tables/'labelled.csv'}?unlabelled={tables/'more.txt'}")
    plain, cache = f"file:{tables/'labelled.csv'}", tables / "cache"
    assert load_task(name, cache=cache)["train"][:] == load_task(plain, cache=cache)["train"][:]
    found = transfer_set(name, 100, cache=cache)
    lines = (tables / "more.txt").read_text(encoding="utf-8").split("\n")
    assert found.column_names == ["text", "idx"] and {*found["text"]} <= {*lines} and len(found) == 37
    assert found["text"][:] != [t for t in lines if t in {*found["text"]}], "shuffled"
    assert transfer_note(name, 100, cache=cache) == (
        "37 further texts (100 asked for; "
        "left out: 1 in the training set, 1 in the validation set, 1 that occur twice)"
    )
    assert transfer_set(name, 5, cache=cache)[:] == found[:5]
    assert len(transfer_set(plain, 100, cache=cache)) == 0
    left = {*load_task(name, cache=cache)["train"]["text"]} - {*load_task(name, 24, cache)["train"]["text"]}
    assert {*transfer_set(name, 40, 24, cache)["text"]} == left and len(left) == 40
    assert transfer_set(name, 99, 24, cache)["text"][40:] == found["text"][:]  # in the same order


def test_rows_without_a_label(tables):
    name, cache = resolve(f"file:{tables/'glosses.csv'}?missing=transfer"), tables / "cache"
    drop = f"file:{tables/'glosses.csv'}?missing=drop"
    bare = [t for t, _ in words(90)[80:]]
    assert {*transfer_set(name, 99, cache=cache)["text"]} == {*bare} and "missing=transfer" in name
    assert len(transfer_set(drop, 99, cache=cache)) == 0
    assert load_task(name, cache=cache)["train"][:] == load_task(drop, cache=cache)["train"][:]
    both = f"file:{tables/'glosses.csv'}?missing=transfer&unlabelled={tables/'more.txt'}"
    assert len(transfer_set(both, 99, cache=cache)) == 47
    with pytest.raises(ValueError, match="glosses.csv: row 81 has nothing in column 'label'"):
        resolve(f"file:{tables/'glosses.csv'}?unlabelled={tables/'more.txt'}")


def test_transfer_texts_do_not_depend_on_place_or_process_and_outlive_their_files(tables, run_py):
    cfg = resolve_task(Run(task=f"file:{tables/'labelled.csv'}?unlabelled={tables/'more.txt'}", methods="kd"))
    found = transfer_set(cfg.task, 99, cache=tables / "cache")["text"][:]
    (tables / "deep").mkdir()
    shutil.copy(tables / "labelled.csv", tables / "deep/a.csv")
    shutil.copy(tables / "more.txt", tables / "deep/b.txt")
    code = f"""
import json, os; os.chdir({str(tables)!r})
from combcomp.spec import resolve_task, Run
from combcomp.data.loading import transfer_set
cfg = resolve_task(Run(task="file:deep/a.csv?unlabelled=deep/b.txt", methods="kd"))
print(json.dumps([cfg.id, transfer_set(cfg.task, 99, cache="other")["text"][:]]))
"""
    assert json.loads(run_py(code, PYTHONHASHSEED="5").splitlines()[-1]) == [cfg.id, found]
    assert portable(cfg.task).startswith("file:labelled.csv?text=text&label=label&unlabelled=more.txt#")
    (tables / "more.txt").unlink()
    assert transfer_set(cfg.task, 99, cache=tables / "cache")["text"][:] == found
    assert len(load_task(cfg.task, cache=tables / "cache")) == 2  # without the split that holds them
    with pytest.raises(FileNotFoundError, match="more.txt"):
        transfer_set(cfg.task, 99, cache=tables / "elsewhere")


def test_another_second_file_is_another_task(tables):
    named = lambda what: resolve(f"file:{tables/'labelled.csv'}?{what}={tables/'labelled.csv'}").split("#")[1]
    assert named("validation") != named("unlabelled")
    task = f"file:{tables/'labelled.csv'}?unlabelled={tables/'more.txt'}"
    before = resolve_task(Run(task=task))
    with open(tables / "more.txt", "a", encoding="utf-8") as f:
        f.write("one more text\n")
    assert Run(task=task).id != before.id != Run(task=f"file:{tables/'labelled.csv'}").id
    with pytest.raises(ValueError, match="labelled.csv or more.txt has changed since"):
        load_task(before.task, cache=tables)


@pytest.mark.parametrize(
    "name, content, error, told",
    [
        ("nowhere.txt", None, FileNotFoundError, "there is no file '.*nowhere.txt'.*give the whole path"),
        ("empty.txt", "", ValueError, "empty.txt: the file is empty; leave out unlabelled="),
        ("empty.csv", "", ValueError, "empty.csv: the file is empty"),
        ("blank.txt", "\n  \n", ValueError, "blank.txt: no row has a text; leave out unlabelled="),
        ("header.csv", "text\n", ValueError, "header.csv: there are no rows"),
        ("a.csv", "review,label\nfine,x\n", ValueError, "a.csv: there is no column 'text'.*'label'. Rename"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', ValueError, "a.jsonl: row 2, column 'text' is '3'"),
        ("a.jsonl", '{"text": "x"}\n{"b": "y"}\n', ValueError, "row 2 has nothing in column 'text'.*=drop"),
        (
            "a.txt",
            b"fine\n\nnum\xe9ro",
            ValueError,
            "a.txt: row 3, column 'text' is not UTF-8.*save the file",
        ),
        (
            "a.csv",
            b"text\nnum\xe9ro\n",
            ValueError,
            "a.csv: row 1, column 'text' is not UTF-8.*save the file",
        ),
        ("a.txt", "fine".encode("utf-16"), ValueError, "a.txt: this is UTF-16.*save it as UTF-8"),
        ("a.parquet", "no", ValueError, "a.parquet: cannot be read as parquet"),
        ("a.docx", "x", ValueError, "a.docx: unlabelled= takes a file that ends in .txt, .csv"),
        ("long.txt", "x" * 100_001, ValueError, "long.txt: row 1, column 'text' has 100,001 characters"),
    ],
)
def test_a_wrong_second_file_is_said_before_anything_is_trained(tables, name, content, error, told):
    if content is not None:
        (tables / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=told):
        Run(task=f"file:{tables/'labelled.csv'}?unlabelled={tables/name}").id


def test_second_files_of_every_kind(tables):
    import datasets

    texts, cache = ["one text", "another, with a comma"], tables / "cache"
    (tables / "m.txt").write_bytes("\ufeffone text\r\nanother, with a comma\r\n".encode())
    (tables / "m.csv").write_text('label,text\nunknown,one text\n,"another, with a comma"\n')
    (tables / "m.tsv").write_text("text\none text\nanother, with a comma\n")
    (tables / "m.jsonl").write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts))
    (tables / "m.json").write_text(json.dumps([dict(text=t, label=None) for t in texts]))
    datasets.Dataset.from_dict(dict(text=texts)).to_parquet(tables / "m.parquet")
    for ending in ("txt", "csv", "tsv", "jsonl", "json", "parquet"):
        found = transfer_set(f"file:{tables/'labelled.csv'}?unlabelled={tables}/m.{ending}", 9, cache=cache)
        assert {*found["text"]} == {*texts}, ending


def test_pairs_without_labels(tmp_path):
    pair = lambda i: dict(premise=f"the first {i}", hypothesis=f"and the second {i}", label="ab"[i % 2])
    rows = [pair(i) for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    more = ["hypothesis,premise", "b,a", "and the second 0,the first 0", "and the second 0,the first 1"]
    (tmp_path / "more.csv").write_text("\n".join(more))
    name = own(tmp_path / "pairs.jsonl", unlabelled=tmp_path / "more.csv")
    found = transfer_set(name, 9, cache=tmp_path)
    assert {*zip(found["text1"], found["text2"])} == {("a", "b"), ("the first 1", "and the second 0")}
    (tmp_path / "more.txt").write_text("a text\n")
    with pytest.raises(ValueError, match="more.txt: a .txt file holds one text a line.*premise and hypo"):
        own(tmp_path / "pairs.jsonl", unlabelled=tmp_path / "more.txt")


def test_labels_that_a_data_set_does_not_know(tmp_path):
    "`datasets` writes -1 where there is no label: neither the last class nor a class of its own"
    import datasets

    kinds = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["ape", "fox"]))
    columns = dict(text=[f"text number {i}" for i in range(60)], label=[0, 1, -1] * 20)
    data = datasets.Dataset.from_dict(columns, features=kinds)
    with pytest.raises(ValueError, match="row 3 has nothing in column 'label' .20 such"):
        own(data, outputs=tmp_path)
    more = datasets.Dataset.from_dict(dict(text=["and", "others"]))
    name = own(data, outputs=tmp_path, missing="transfer", unlabelled=more)
    assert len(own_unlabelled(name, tmp_path)) == len(transfer_set(name, 99, cache=tmp_path)) == 22
    assert sum(len(split) for split in own_data(name, tmp_path).values()) == 40
