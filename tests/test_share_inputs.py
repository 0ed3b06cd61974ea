"What a model reads travels with it, judgements follow the room above guessing, facts cost no row"

import json, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers
from conftest import REPO
from safetensors import safe_open
from safetensors.numpy import save

from combcomp import basics, cli
from combcomp import Run, export, load, load_exported, pack, run, save_pretrained, unpack
from combcomp.compress.distillation import check_order, check_teacher
from combcomp.data.loading import load_task
from combcomp.data.tasks import task_of
from combcomp.models.encoders import predict, source
from combcomp.models.tokenizers import is_cased
from combcomp.ship.packed_file import CorruptFile, FORMAT, inspect, trained_on, write_header
from combcomp.ship.runtimes import ParityError, allowed_difference, load_about, parity, write_about
from combcomp.spec import teacher_run
from combcomp.study import bootstrap, recommendation, reductions
from combcomp.study.runner import evaluate, model_file
from combcomp.study.store import load_results, read_failure, save_failure

QUIET = lambda *args, **kwargs: None
pytest.importorskip("onnxruntime")


def table(path, columns, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]))
    return f"file:{path}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A very small BERT and files of texts whose label is one of their words"
    folder = tmp_path_factory.mktemp("inputs")
    shape = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=2)
    for name, positions in (("bert", 512), ("short", 64)):
        transformers.set_seed(0)
        config = transformers.BertConfig(**shape, max_position_embeddings=positions)
        transformers.BertForSequenceClassification(config).save_pretrained(folder / name)
        shutil.copy(Path(source("minilm", "l1")) / "vocab.txt", folder / name)
    words = [("good", "yes") if i % 2 else ("bad", "no") for i in range(160)]
    texts = [f"number {i} is {word}" for i, (word, _) in enumerate(words)]
    table(folder / "single.csv", ("text", "label"), [(t, y) for t, (_, y) in zip(texts, words)])
    table(
        folder / "pair.csv",
        ("premise", "hypothesis", "label"),
        [(t, f"it is {word}", y) for t, (word, y) in zip(texts, words)],
    )
    table(
        folder / "long.csv",
        ("text", "label"),
        [("the room had a table " * 30 + f"{i} " + f"{word} " * 9, y) for i, (word, y) in enumerate(words)],
    )
    table(folder / "numbers.csv", ("text", "score"), [(t, i % 9 / 2) for i, t in enumerate(texts)])
    return folder


def made(place, name, **changed):
    "A finished run of a file, with its row"
    given = dict(family=str(place / "bert"), size="full", epochs=1, max_length=64) | changed
    cfg = Run(task=f"file:{place / name}.csv", **given)
    return cfg, run(cfg, place / "out", log=QUIET)


def shipped(place, name, **changed):
    "A run as a saved folder, and as an export without its row"
    cfg, _ = made(place, name, **changed)
    saved = place / f"saved-{name}-{cfg.id}"
    if not saved.exists():
        save_pretrained(cfg, saved, place / "out")
        model, tokenizer = unpack(model_file(cfg, place / "out")), load(saved).tokenizer
        export(model, place / f"onnx-{name}-{cfg.id}", "onnx", tokenizer, cfg.task)
    return load(saved), load_exported(place / f"onnx-{name}-{cfg.id}")


# What a model was trained to read


@pytest.mark.parametrize("name, pairs", [("single", False), ("pair", True), ("numbers", False)])
def test_what_a_model_reads_is_in_every_file(place, name, pairs):
    cfg, _ = made(place, name)
    reads = dict(max_length=64, pairs=pairs, cased=False)
    header = inspect(model_file(cfg, place / "out"))
    assert header["version"] == 1 and header["config"]["combcomp"].items() >= reads.items()
    for model in shipped(place, name):
        assert {k: model.about[k] for k in reads} == reads
    config = json.loads((place / f"saved-{name}-{cfg.id}" / "config.json").read_text())
    assert config["combcomp"].items() >= reads.items()


WRONG = [
    ("single", None, "a text, or a list of texts"),
    ("single", 3, "a text, or a list of texts"),
    ("single", [None], "'None' is not a string"),
    ("single", ["a", float("nan")], "'nan' is not a string"),
    ("single", b"bytes", "bytes; this model reads a text"),
    ("single", dict(text=["a"]), "dict; this model reads a text"),
    ("single", pd.DataFrame(dict(text=["a"])), "DataFrame; this model reads a text"),
    ("single", [("one", "two")], "is a pair, and not a single text; this model reads a text"),
    ("single", [["one", "two"]], "is a pair, and not a single text"),
    ("single", ["fine", ("one", "two")], "is a pair, and not a single text"),
    ("single", "nice \ud83d phone", r"text 0 is not UTF-8: it has a lone surrogate '\\ud83d' at position 5"),
    ("single", ["fine", "\udc00"], "text 1 is not UTF-8"),
    ("numbers", [("one", "two")], "is a pair, and not a single text"),
    ("pair", None, r"a list of pairs, as in \[\(first, second\)\]"),
    ("pair", "only one", "single text, and not a pair; this model reads a list of pairs"),
    ("pair", ["one", "two"], "single text, and not a pair"),
    ("pair", ("a premise", "a hypothesis"), r"as in \[\(first, second\)\]"),
    ("pair", [("a", "b"), "c"], "'c' is a single text"),
    ("pair", [("a", "b", "c")], "is not a string; this model reads a list of pairs"),
    ("pair", [("a", None)], "is not a string"),
    ("pair", [("fine", "half \ud83d")], "text 0 is not UTF-8"),
]


@pytest.mark.parametrize("name, given, message", WRONG)
@pytest.mark.parametrize("way", [0, 1], ids=["load", "load_exported"])
def test_a_wrong_input_is_named(place, name, given, message, way):
    with pytest.raises(ValueError, match=message):
        shipped(place, name)[way].predict(given)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None, "8"])
def test_batches_have_a_text_or_more(place, batch_size):
    for model in shipped(place, "single"):
        for texts in (["a", "b"], []):
            with pytest.raises(ValueError, match="batch_size=.* an int in"):
                model.predict(texts, batch_size=batch_size)


def test_right_inputs_are_read_as_before(place):
    for model in shipped(place, "single"):
        expected = model.logits(["one", "two"])
        for given in (
            ("one", "two"),
            np.array(["one", "two"]),
            pd.Series(["one", "two"]),
            iter(["one", "two"]),
        ):
            assert np.array_equal(model.logits(given), expected)
        assert len(model.predict("\U0001f600")) == 1 and model.predict([]) == [] and len(model([""])) == 1
    for model in shipped(place, "pair"):
        assert np.array_equal(model.logits([("a", "b")]), model.logits([["a", "b"]]))


def test_older_files_are_read_as_before(place, tmp_path):
    "Without these facts the row has the length, and texts and pairs are both read"
    cfg, _ = made(place, "single")
    folder = shutil.copytree(place / f"saved-single-{cfg.id}", tmp_path / "old")
    model = unpack(folder / "model.safetensors")
    model.config.combcomp = {k: model.config.combcomp[k] for k in ("run", "methods", "task")}
    pack(model, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    old = load(folder)
    assert old.about["max_length"] == 64 and old.about["pairs"] is None and trained_on(model)["cased"] is None
    assert len(old.predict(["one", ("two", "three")])) == 2
    (folder / "row.json").unlink()
    assert load(folder).about["max_length"] == 128
    about = export(unpack(folder / "model.safetensors"), tmp_path / "o", "onnx", old.tokenizer, data=False)
    assert about["max_length"] == 128 and about["pairs"] is None
    about = load_about(tmp_path / "o")
    write_about({k: v for k, v in about.items() if k not in ("pairs", "cased")}, tmp_path / "o")
    assert len(load_exported(tmp_path / "o").predict(["one", ("two", "three")])) == 2


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(max_length=9999), "max_length='9999'"),
        (dict(max_length="64"), "max_length='64'"),
        (dict(max_length=True), "max_length='True'"),
        (dict(max_length=0), "max_length='0'"),
        (dict(pairs="yes"), "pairs='yes'"),
        (dict(cased=1), "cased='1'"),
    ],
)
def test_an_impossible_input_is_neither_packed_nor_read(place, tmp_path, changed, message):
    file = model_file(made(place, "single")[0], place / "out")
    model = unpack(file)
    model.config.combcomp = model.config.combcomp | changed
    with pytest.raises(ValueError, match=message):
        pack(model, tmp_path / "m.safetensors")
    with safe_open(file, "numpy") as f:  # a file whose checksums are right
        header, arrays = json.loads(f.metadata()[FORMAT]), {k: f.get_tensor(k) for k in f.keys()}
    del header["check"]
    header["config"]["combcomp"] |= changed
    (tmp_path / "m.safetensors").write_bytes(save(arrays, write_header(header)))
    with pytest.raises(CorruptFile, match=message):
        unpack(tmp_path / "m.safetensors")


# The length


@pytest.fixture(scope="module")
def long(place):
    return made(place, "long", max_length=256, epochs=8, lr=3e-3, batch_size=8)


def test_an_export_reads_what_the_model_was_trained_with(place, long, tmp_path):
    cfg, row = long
    assert row["score"] > 90  # the word is at the end
    save_pretrained(cfg, tmp_path / "saved", place / "out")
    model, tokenizer = unpack(model_file(cfg, place / "out")), load(tmp_path / "saved").tokenizer
    about = export(model, tmp_path / "o", "onnx", tokenizer, cfg.task)
    assert about["max_length"] == 256 and about["parity"]["score"] == about["parity"]["exported_score"] > 90
    texts = load_task(cfg.task)["validation"]["text"]
    assert load(tmp_path / "saved").about["max_length"] == 256
    assert np.allclose(
        load(tmp_path / "saved").logits(texts), load_exported(tmp_path / "o").logits(texts), atol=1e-3
    )
    with pytest.raises(ParityError, match="cut after 100 tokens, in training after 256"):
        export(model, tmp_path / "cut", "onnx", tokenizer, cfg.task, max_length=100)
    cut = export(model, tmp_path / "cut", "onnx", tokenizer, max_length=100, data=False)
    assert cut["max_length"] == 100


def test_the_command_takes_the_length_from_the_file(place, long, tmp_path, capsys):
    cfg, _ = long
    file = shutil.copy(model_file(cfg, place / "out"), tmp_path / "alone.safetensors")
    words = ["export", str(file), "-o", str(tmp_path / "o"), "--runtime", "onnx", "--task", "none"]
    words += ["--tokenizer", str(place / "bert"), "--outputs", str(tmp_path / "nothing")]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert load_about(tmp_path / "o")["max_length"] == 256


@pytest.mark.parametrize("methods", ["", "kd", "mp,qat", "ptq"])
def test_more_tokens_than_positions_is_an_error_before_training(place, tmp_path, methods):
    cfg = Run(task=f"file:{place / 'single.csv'}", family=str(place / "short"), size="full", methods=methods)
    with pytest.raises(ValueError, match="max_length=128 is more than the 64 positions"):
        run(cfg, tmp_path, log=QUIET)
    assert not [*tmp_path.glob("runs/*.json")]
    at = Run(task=cfg.task, family=cfg.family, size="full", epochs=1, max_length=64)
    assert run(at, tmp_path, log=QUIET)["max_length"] == 64


def test_a_named_teacher_with_fewer_positions_is_named(place, tmp_path):
    few = Run(
        task=f"file:{place / 'single.csv'}",
        family=str(place / "short"),
        size="full",
        max_length=64,
        epochs=8,
        lr=3e-3,
    )
    run(few, tmp_path, log=QUIET)
    cfg = Run(
        task=few.task,
        family=str(place / "bert"),
        size="full",
        methods="kd",
        teacher=str(model_file(few, tmp_path)),
    )
    with pytest.raises(ValueError, match="max_length=128 is more than the 64 positions of the teacher"):
        run(cfg, tmp_path, log=QUIET)


def test_a_tokenizer_with_capitals_is_not_that_of_a_model_without(place, tmp_path):
    cfg, _ = made(place, "single")
    model = unpack(model_file(cfg, place / "out"))
    other = transformers.AutoTokenizer.from_pretrained(place / "bert", do_lower_case=False)
    assert is_cased(other) and not is_cased(load(place / f"saved-single-{cfg.id}").tokenizer)
    with pytest.raises(ValueError, match="keeps capitals, and the model was trained with one that turns"):
        export(model, tmp_path / "o", "onnx", other, cfg.task)
    folder = shutil.copytree(place / f"saved-single-{cfg.id}", tmp_path / "saved")
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="keeps capitals"):
        load(folder)


# Judgement of teachers


def test_a_perfect_teacher_is_believed_where_classes_are_unequal(place, tmp_path):
    row = lambda tag, rare, i: (f"{'urgent fraud' if rare else 'send catalogue'} {tag} {i}", "ab"[rare])
    table(tmp_path / "val.csv", ("text", "label"), [row("v", i < 2, i) for i in range(200)])
    task = table(tmp_path / "train.csv", ("text", "label"), [row("t", i % 2, i) for i in range(120)])
    cfg = Run(
        task=f"{task}?validation={tmp_path}/val.csv",
        family=str(place / "bert"),
        size="full",
        methods="kd",
        epochs=8,
        lr=3e-3,
        max_length=16,
        batch_size=8,
    )
    teacher = run(teacher_run(cfg), tmp_path / "out", log=QUIET)
    assert teacher["majority"] == 99 and teacher["score"] == 100
    assert run(cfg, tmp_path / "out", log=QUIET)["teacher_score"] == 100


@pytest.mark.parametrize(
    "points, guess, judged",
    [
        (100, 99, True),
        (99.5, 99, True),
        (100, 99.9, True),
        (86, 50, True),
        (52, 50, True),
        (30, 0, True),
        (99, 99, False),
        (98, 99, False),
        (50, 50, False),
        (51, 50, False),
        (0, 0, False),
        (float("nan"), 50, False),
    ],
)
def test_teachers_are_judged_by_the_room_above_guessing(points, guess, judged):
    if judged:
        return check_teacher(points, guess, task_of("accept"))
    with pytest.raises(ValueError, match="not fine-tuned"):
        check_teacher(points, guess, task_of("accept"))


def test_a_teacher_cannot_be_judged_on_one_label():
    with pytest.raises(ValueError, match="have the same label"):
        check_teacher(100, 100, task_of("accept"))


def test_two_rare_classes_in_the_wrong_order_are_noticed():
    task, truth = task_of("mnli"), np.array([0] * 98 + [1, 2])
    check_order(np.eye(3)[truth], truth, task)
    check_order(np.eye(3)[0 * truth], truth, task)  # learned nothing, and that is not the order
    with pytest.raises(ValueError, match=r"in the order \(0, 2, 1\) with accuracy 1.00"):
        check_order(np.eye(3)[[0, 2, 1]][truth], truth, task)


# Parity


def test_parity_on_rows_with_one_label_and_on_none(place, tmp_path):
    cfg, _ = made(place, "numbers", methods="qat")
    model, data = unpack(model_file(cfg, place / "out")), load_task(cfg.task)["validation"]
    tokenizer = shipped(place, "numbers")[0].tokenizer
    try_on = lambda rows: export(model, tmp_path / "o", "onnx", tokenizer, cfg.task, rows)["parity"]
    same = [i for i, y in enumerate(data["label"]) if y == data["label"][0]]
    for rows in (same, same[:1]):
        found = try_on(data.select(rows))
        assert found["examples"] == len(rows) and found["equal"] == 1 and found["score"] == 0
    with pytest.raises(ValueError, match="have no rows"):
        try_on(data.select([]))
    with pytest.raises(ValueError, match="have no column 'label'; they have"):
        try_on(data.remove_columns("label"))
    with pytest.raises(ValueError, match="have no column"):
        try_on(load_task(cfg.task))  # all splits


def test_parity_on_one_class(place, tmp_path):
    cfg, _ = made(place, "single")
    data, tokenizer = load_task(cfg.task)["validation"], shipped(place, "single")[0].tokenizer
    one = data.select([i for i, y in enumerate(data["label"]) if y == 1])
    about = export(unpack(model_file(cfg, place / "out")), tmp_path / "o", "onnx", tokenizer, cfg.task, one)
    assert about["parity"]["equal"] == 1 and np.isfinite(about["parity"]["score"])


def test_parity_on_a_task_of_another_kind(place, tmp_path):
    model = unpack(model_file(made(place, "single")[0], place / "out"))
    with pytest.raises(ValueError, match="has pairs of texts, and the model was trained on single texts"):
        export(
            model, tmp_path / "o", "onnx", shipped(place, "single")[0].tokenizer, f"file:{place / 'pair.csv'}"
        )


def test_outputs_of_one_label_still_differ():
    task, line = task_of("glosssim"), np.linspace(2, 3, 50)[:, None]
    assert parity(task, line, line + 0.01, [3.0] * 50)["equal"] == 1
    assert parity(task, line, line + 0.5, [3.0] * 50)["equal"] == 0
    assert parity(task, 0 * line, 0 * line, [0.0] * 50)["equal"] == 1
    assert parity(task, 0 * line, line, [0.0] * 50)["equal"] == 0
    assert parity(task, line[:1], line[:1], [3.0])["equal"] == 1
    with pytest.raises(ValueError, match="no examples"):
        parity(task, line[:0], line[:0], [])


def test_the_allowed_difference_follows_the_room():
    labels = lambda rare, n=1000: [1] * rare + [0] * (n - rare)
    found = [allowed_difference(task_of("accept"), labels(k), 0.2) for k in (500, 250, 10, 1, 0)]
    assert found == pytest.approx([0.2, 0.1, 0.004, 0.0004, 0.2])
    assert allowed_difference(task_of("glosssim"), [1.0, 2.0], 0.2) == 0.2


# Tables without rows

ROWS = load_results(REPO / "outputs")
TABLES = dict(
    empty=ROWS.iloc[:0],
    bare=pd.DataFrame(),
    unscored=ROWS[ROWS["methods"] == ""].head(1).assign(score=np.nan),
)
FUNCTIONS = dict(
    recommend=lambda t: recommendation.recommend(t, megabytes=20),
    by_score=lambda t: recommendation.recommend(t, score=20),
    by_time=lambda t: recommendation.recommend(t, milliseconds=20),
    candidates=recommendation.candidates,
    max_reduction=reductions.max_reduction,
    curve=lambda t: reductions.max_reduction(t, aggregate="curve"),
    each=lambda t: reductions.max_reduction(t, aggregate="each"),
    interactions=reductions.interactions,
    points=reductions.points,
    averages=bootstrap.averages,
    bootstrap_scores=bootstrap.bootstrap_scores,
    score_effect=lambda t: bootstrap.score_effect(t, {"": 1}),
    study_rows=reductions.study_rows,
)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_table_without_rows_is_named(name, kind):
    with pytest.raises(ValueError, match="the table has no|no row of the table has|no rows of minilm"):
        FUNCTIONS[name](TABLES[kind])


def test_parts_of_a_table_without_rows():
    for call in (reductions.seeds_of, reductions.trainings, reductions.is_subset, reductions.leave_one_out):
        with pytest.raises(ValueError, match="the table has no column"):
            call(pd.DataFrame())
    draws = pd.DataFrame(index=pd.MultiIndex.from_arrays([[]] * 4, names=reductions.KEYS))
    for empty, message in ((draws, "share no task"), (pd.DataFrame(), "no draws")):
        with pytest.raises(ValueError, match=message):
            bootstrap.probability_of_improvement(empty, "kd", "")
    with pytest.raises(ValueError, match="no examples"):
        bootstrap.resampled_scores("accept", np.empty((2, 0)), np.empty(0), np.empty((0, 3)))
    with pytest.raises(ValueError, match="has no points"):
        reductions.size_at_score([], [], 50)
    with pytest.raises(ValueError, match="needs draws"):
        reductions.interval(np.empty((0, 3)))
    assert recommendation.reasons(ROWS.iloc[:0].assign(megabytes=[]), ["megabytes"]) == []


# The environment


@pytest.mark.parametrize("fact", ["device", "threads", "commit", "version_torch"])
def test_a_fact_that_cannot_be_had_costs_no_row(place, tmp_path, fact, monkeypatch):
    def broken():
        raise RuntimeError("the driver does not answer")

    said = []
    monkeypatch.setitem(basics.FACTS, fact, broken)
    cfg = Run(
        task=f"file:{place / 'single.csv'}", family=str(place / "bert"), size="full", max_length=32, epochs=1
    )
    row = run(cfg, tmp_path, log=lambda *text, **kwargs: said.extend(text))
    assert fact not in row and {*basics.FACTS} - {fact} <= {*row}
    assert any(fact in line and "the driver does not answer" in line for line in said)
    assert load_results(tmp_path)["id"].tolist() == [cfg.id]
    assert (save_pretrained(cfg, tmp_path / "saved", tmp_path) / "README.md").is_file()
    assert fact not in save_failure(cfg, ValueError("x"), tmp_path) and read_failure(cfg.id, tmp_path)


def test_facts_are_gathered_before_the_training(place, tmp_path, monkeypatch):
    "What breaks during the training does not matter after it"
    import combcomp.study.runner as runner

    real = runner.compress

    def breaks(*args, **kwargs):
        for name in basics.FACTS:
            monkeypatch.setitem(basics.FACTS, name, lambda: pytest.fail("gathered after the training"))
        return real(*args, **kwargs)

    monkeypatch.setattr(runner, "compress", breaks)
    cfg = Run(
        task=f"file:{place / 'single.csv'}", family=str(place / "bert"), size="full", max_length=32, epochs=1
    )
    assert {*basics.FACTS} <= {*run(cfg, tmp_path, log=QUIET)}


@pytest.mark.parametrize("value", ["", "2,1", "many"])
def test_the_threads_of_a_row_are_those_of_torch(place, tmp_path, monkeypatch, value):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", value)
    cfg = Run(
        task=f"file:{place / 'single.csv'}", family=str(place / "bert"), size="full", max_length=32, epochs=1
    )
    assert run(cfg, tmp_path, log=QUIET)["threads"] == torch.get_num_threads()


# No rows


def test_no_rows_have_no_logits_and_no_score(place):
    cfg, _ = made(place, "single")
    model, data = unpack(model_file(cfg, place / "out")), load_task(cfg.task)
    tokenizer = shipped(place, "single")[0].tokenizer
    none = data["validation"].select([])
    assert predict(model, tokenizer, none, ("text",)).shape == (0, 2)
    with pytest.raises(ValueError, match="expected .1 or more"):
        evaluate(model, tokenizer, dict(data, validation=none), cfg)
    with pytest.raises(ValueError, match="batch_size='0'"):
        predict(model, tokenizer, data["validation"], ("text",), batch_size=0)


def test_capitals_are_not_lost_on_the_way_to_transformers(place, tmp_path, capsys):
    cfg, _ = made(place, "single")
    other = transformers.AutoTokenizer.from_pretrained(place / "bert", do_lower_case=False)
    other.save_pretrained(tmp_path / "cased")
    words = ["unpack", str(model_file(cfg, place / "out")), "-o", str(tmp_path / "o")]
    assert cli.main([*words, "--tokenizer", str(tmp_path / "cased")]) == 2
    assert "keeps capitals" in capsys.readouterr().err and not (tmp_path / "o").exists()
    assert cli.main([*words, "--tokenizer", str(place / "bert")]) == 0
