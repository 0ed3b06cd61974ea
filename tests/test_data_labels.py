"Texts with several labels: reading, training, thresholds, files, exports; a headline of choice and balanced classes"

import json, shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn.metrics import f1_score
from test_cli import do, refused

from combcomp import export, load, load_exported, own, pack, run, Run, save_pretrained, unpack
from combcomp.compress.distillation import check_labels, distill_loss, label_loss, soft_label_loss
from combcomp.data.loading import hold_out_thresholds, load_task
from combcomp.data.probabilities import choose_thresholds, move_thresholds
from combcomp.data.tasks import decide, headline_of, label_vector, majority, metrics, task_of
from combcomp.data.text_files import own_task, resolve
from combcomp.models.encoders import load_model, load_tokenizer, predict, source
from combcomp.share.calibration import calibrate, set_thresholds
from combcomp.ship.packed_file import inspect
from combcomp.ship.runtimes import ParityError, load_about, parity, write_about
from combcomp.spec import KD, resolve_task, teacher_run
from combcomp.study.bootstrap import bootstrap_scores, resampled_scores
from combcomp.study.errors import confusion, examine
from combcomp.study.runner import model_file
from combcomp.study.store import load_predictions, load_results

QUIET = lambda *args, **kwargs: None
pytest.importorskip("onnxruntime")
WORDS = dict(praise="good", complaint="bad", refund="money", late="late")


def tags_of(i):
    "Labels of text i: each of four with a share of its own, some texts with none"
    return [tag for k, tag in enumerate(WORDS) if (i * 7 + k * 3) % (2, 3, 5, 11)[k] == 0]


def text_of(i):
    return f"number {i} is " + " and ".join([WORDS[tag] for tag in tags_of(i)] or ["plain"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A very small BERT, and texts whose labels are some of their words, in the ways to write several labels"
    folder = tmp_path_factory.mktemp("labels")
    transformers.set_seed(0)
    shape = dict(num_hidden_layers=1, hidden_size=64, intermediate_size=128, num_attention_heads=2)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**shape))
    model.save_pretrained(folder / "bert")
    shutil.copy(Path(source("minilm", "l1")) / "vocab.txt", folder / "bert")
    rows = [(text_of(i), tags_of(i)) for i in range(400)]
    lines = [json.dumps(dict(text=t, tags=tags)) for t, tags in rows]
    (folder / "lists.jsonl").write_text("\n".join(lines))
    pd.DataFrame(rows, columns=["text", "tags"]).to_csv(folder / "lists.csv", index=False)
    joined = [(t, "|".join(tags)) for t, tags in rows]
    pd.DataFrame(joined, columns=["text", "tags"]).to_csv(folder / "pipe.csv", index=False)
    single = [(t, tags[0] if tags else "late") for t, tags in rows]
    pd.DataFrame(single, columns=["text", "tag"]).to_csv(folder / "single.csv", index=False)
    return folder


LISTS, PIPE, SINGLE = "lists.jsonl?label=tags", "pipe.csv?label=tags&labels=pipe", "single.csv?label=tag"


def cfg_of(place, name=LISTS, **changed):
    given = dict(family=str(place / "bert"), size="full", epochs=25, lr=2e-3, max_length=32) | changed
    return resolve_task(Run(task=f"file:{place}/{name}", **given))


@pytest.fixture(scope="module")
def made(place):
    "A run with several labels and a threshold for each"
    cfg, said = cfg_of(place, recipe="v2(thresholds='label')"), []
    row = run(cfg, place / "out", log=lambda *a, **k: said.append(a[0]))
    return cfg, row, "\n".join(said)


def test_the_ways_to_write_several_labels_are_one(place, tmp_path):
    with pytest.warns(UserWarning, match="texts with none of the labels"):
        tasks = [own_task(f"file:{place}/{n}", tmp_path) for n in (LISTS, "lists.csv?label=tags", PIPE)]
    data = [load_task(t, cache=tmp_path) for t in tasks]
    assert all(t.multi and t.labels == tuple(sorted(WORDS)) and t.headline == "micro_f1" for t in tasks)
    first = data[0]["train"]
    assert all(d["train"]["label"][:] == first["label"][:] for d in data) and [] in first["label"][:]
    frame = pd.DataFrame([(text_of(i), tags_of(i)) for i in range(60)], columns=["text", "tags"])
    assert "labels=list" in own(frame, label="tags", outputs=tmp_path)
    part = load_task(tasks[0], 100, tmp_path)["train"]["label"]
    assert {i for ids in part for i in ids} == {0, 1, 2, 3}
    # a file to evaluate on may have no text with two labels, but no label that is new
    (tmp_path / "held.csv").write_text("text,tags\nthe first,praise\nanother,late\n")
    with pytest.warns(UserWarning, match="texts with none"):
        held = own_task(f"file:{place}/{PIPE}&validation={tmp_path}/held.csv", tmp_path)
    assert load_task(held, cache=tmp_path)["validation"]["label"][:] == [[2], [1]]
    (tmp_path / "held.csv").write_text("text,tags\nthe first,praise\nanother,late|new\n")
    with pytest.raises(
        ValueError, match="held.csv: row 2 has 'new' in column 'tags', which pipe.csv never has"
    ):
        own_task(f"file:{place}/{PIPE}&validation={tmp_path}/held.csv", tmp_path)
    # a file that is gone is read from the copy, with the names of its labels
    gone = tmp_path / "gone.jsonl"
    shutil.copy(place / "lists.jsonl", gone)
    name = resolve(f"file:{gone}?label=tags")
    load_task(name, cache=tmp_path)
    gone.unlink()
    assert own_task(name, tmp_path).labels == tasks[0].labels and own_task(name, tmp_path).multi


@pytest.mark.parametrize(
    "rows, option, message",
    [
        ([["a"], ["b"], "a"], "", "row 3 has 'a' .* a single label, and most other rows have lists"),
        (["a", "b", []], "", r"row 3 has '\[\]' .* a list, and most other rows have single labels"),
        (["a", "b", []], "&kind=classification", r"row 3 has '\[\]' .* a text has one label"),
        (["a;b", "b", "c"], "&labels=pipe", r"no row has '\|' between two labels"),
        ([["a"], ["b", None], []], "", "a list with an empty label"),
        ([["a"], [["b"]], []], "", "a label is one word or number"),
        ([["a"], [], ["a"]], "", "several labels need two or more"),
        ([["a"], ["b"], None], "", "row 3 has nothing in column 'label'"),
        ([["a"], ["b"], []], "&kind=regression", "row 1 has .* which is not a number|leave one of them out"),
        ([["a"], ["b"], []], "&metric=accuracy", "metric='accuracy' is not allowed"),
    ],
)
def test_what_is_wrong_with_labels(tmp_path, rows, option, message):
    lines = [json.dumps(dict(text=f"text number {i}", label=rows[i % len(rows)])) for i in range(60)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        resolve(f"file:{tmp_path}/x.jsonl?label=label{option}")


def test_metrics_agree_with_scikit_learn():
    rng, names = np.random.default_rng(0), ("a", "b", "c")
    task = replace(
        task_of("rte"), name="t", labels=names, headline="micro_f1", also=("macro_f1",), multi=True
    )
    logits, y = rng.normal(size=(200, 3)), rng.random((200, 3)) < [0.1, 0.4, 0.7]
    lists = [np.flatnonzero(row).tolist() for row in y]
    for thresholds in (None, [0.3, 0.5, 0.8]):
        found = metrics(task, logits, lists, thresholds)
        said = 1 / (1 + np.exp(-logits)) >= (thresholds or 0.5)
        for name in ("micro", "macro"):
            assert found[f"{name}_f1"] == pytest.approx(f1_score(y, said, average=name))
    assert majority(task, lists) == pytest.approx(
        100 * max(f1_score(y, np.tile(a, (200, 1)), average="micro") for a in np.ndindex(2, 2, 2))
    )
    with pytest.raises(ValueError, match="expected \\(200, 3\\)"):
        metrics(task, logits[:, :2], lists)


@pytest.mark.parametrize(
    "metric", ["micro_f1", "macro_f1", "exact_match", "f1", "matthews", "spearman", "accuracy"]
)
def test_the_bootstrap_follows_the_headline(metric):
    rng, several = np.random.default_rng(1), metric in ("micro_f1", "exact_match")
    options = f"labels=list&metric={metric}" if several else f"metric={metric}"
    name = f"file:a.csv?{options}{'&kind=regression' * (metric == 'spearman')}"
    assert headline_of(name) == metric
    if several:
        predicted, y = rng.integers(0, 2, (2, 2, 50, 3))[0], rng.integers(0, 2, (50, 3))
    elif metric == "spearman":
        predicted, y = rng.integers(0, 9, (2, 50)) / 4, rng.normal(size=50)
    else:
        predicted, y = rng.integers(0, 2, (2, 50)), rng.integers(0, 2, 50)
    counts = rng.multinomial(50, np.full(50, 1 / 50), size=4).T
    drawn = resampled_scores(name, predicted, y, counts)
    labels = None if metric == "spearman" else ("a", "b", "c") if several else ("a", "b")
    task = replace(task_of("rte"), name="t", labels=labels, headline=metric, also=(), multi=several)
    for r in range(2):
        for d in range(4):
            rows = np.repeat(np.arange(50), counts[:, d])
            p = predicted[r][rows]
            logits = 2.0 * p - 1 if several else p if labels is None else np.eye(2)[p]
            truth = [np.flatnonzero(v).tolist() for v in y[rows]] if several else y[rows]
            assert drawn[r, d] == pytest.approx(100 * metrics(task, logits, truth)[metric], abs=1e-3)


def test_losses_of_several_labels():
    logits, teacher = torch.tensor([[1.0, -2], [0.5, 3]]), torch.tensor([[2.0, 0], [-1, 1]])
    labels = torch.tensor([[1.0, 0], [float("nan")] * 2])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits[:1], labels[:1])
    assert label_loss(logits, labels) == pytest.approx(plain.item() / 2)
    assert soft_label_loss(logits, logits, 3.0).abs() < 1e-6
    both = distill_loss(plain, logits, teacher, KD(alpha=0.25), True)
    assert both == pytest.approx((0.25 * soft_label_loss(logits, teacher, 2.0) + 0.75 * plain).item())
    assert label_loss(logits, labels, torch.tensor([3.0, 1])) > label_loss(logits, labels)


def test_a_run_with_several_labels(place, made):
    cfg, row, said = made
    assert row["metric"] == "micro_f1" and row["score"] > row["majority"] + 10
    assert "thresholds, from a held-out part of the training set: complaint" in said
    path = model_file(cfg, place / "out")
    model, stored = unpack(path), inspect(path)["info"]["thresholds"]
    assert [*stored] == sorted(WORDS) and model.thresholds == [*stored.values()]
    task, data = task_of(cfg.task, place / "c"), load_task(cfg.task, cache=place / "c")
    tokenizer = load_tokenizer(cfg.family, cfg.size)
    logits = predict(model, tokenizer, data["validation"], task.texts, max_length=32)
    found = metrics(task, logits, data["validation"]["label"][:], model.thresholds)
    assert 100 * found["micro_f1"] == pytest.approx(row["score"]) and found["macro_f1"] == row["macro_f1"]
    predicted, labels = load_predictions(row["id"], place / "out")
    assert (predicted == decide(logits, model.thresholds)).all()
    assert (labels == label_vector(task, data["validation"]["label"][:])).all()
    # the thresholds are those of a part of the training set, and of nothing else
    held = hold_out_thresholds(task, data)
    assert len(held["thresholds"]) == len(data["train"]) // 5 and row["train_examples"] == len(held["train"])
    on_held = predict(model, tokenizer, held["thresholds"], task.texts, max_length=32)
    assert choose_thresholds(on_held, label_vector(task, held["thresholds"]["label"][:])) == model.thresholds
    assert {*held["thresholds"]["text"]}.isdisjoint({*held["train"]["text"], *data["validation"]["text"]})
    drawn = bootstrap_scores(load_results(place / "out"), place / "out", n=50).to_numpy()
    assert drawn.min() < row["score"] < drawn.max()


def test_it_is_distilled_pruned_and_quantized(place, made):
    said = []
    cfg = cfg_of(
        place, methods="kd(transfer=0),mp(sparsity=0.4),qat", recipe="v2(rate=0.003)", lr=None, epochs=12
    )
    row = run(cfg, place / "out", log=lambda *a, **k: said.append(a[0]))
    assert "thresholds: 0.5 for every label, as no part" in "\n".join(said)
    assert row["teacher_score"] > row["majority"] and row["sparsity"] > 0.3 and row["score"] > 20
    assert not hasattr(unpack(model_file(cfg, place / "out")), "thresholds")
    rounded = run(replace(made[0], methods="ptq"), place / "out", log=QUIET)
    assert rounded["score"] == pytest.approx(made[1]["score"], abs=5)
    with pytest.raises(ValueError, match="trained for one label a text, and .* several"):
        single = load_model(cfg.family, "full", task_of(cfg.task).labels)
        check_labels(single, task_of(cfg.task))


@pytest.fixture(scope="module")
def shipped(place, made):
    "The run as an export, a saved folder and a packed file with its tokenizer"
    cfg, row, _ = made
    model, tokenizer = unpack(model_file(cfg, place / "out")), load_tokenizer(cfg.family, cfg.size)
    about = export(model, place / "onnx", "onnx", tokenizer, cfg.task)
    pack(model, place / "small.safetensors", tokenizer)
    save_pretrained(cfg, place / "saved", place / "out")
    return about


def test_files_and_exports_give_the_same_labels(place, made, shipped):
    assert shipped["multi_label"] and {*shipped["parity"]["equal_by_label"]} == {*WORDS}
    assert shipped["parity"]["equal"] == min(shipped["parity"]["equal_by_label"].values()) == 1
    texts = [text_of(i) for i in range(1000, 1040)]
    answers = [m.predict(texts) for m in (load_exported(place / "onnx"), load(place / "saved"))]
    assert [a["labels"] for a in answers[0]] == [a["labels"] for a in answers[1]]
    assert np.mean([{*a["labels"]} == {*tags_of(i)} for i, a in enumerate(answers[0], 1000)]) > 0.6
    assert "any number of the labels" in (place / "onnx" / "README.md").read_text()
    assert "micro_f1" in (place / "saved" / "README.md").read_text()
    (place / "new.csv").write_text("text\n" + "\n".join(texts))
    for name in ("onnx", "small.safetensors"):
        code, _, err = do(
            f"predict {place / name} {place / 'new.csv'} -o {place / 'out.csv'} --force --probabilities"
        )
        assert code == 0, err
        table = pd.read_csv(place / "out.csv", keep_default_na=False)
        assert [json.loads(v) for v in table["predicted"]] == [a["labels"] for a in answers[0]]
        assert {f"probability_{label}" for label in WORDS} <= {*table}
    snippet = (place / "onnx" / "README.md").read_text().split("```python")[1].split("```")[0]
    cwd = Path.cwd()
    import os

    os.chdir(place / "onnx")
    try:
        scope = {}
        exec(snippet, scope)
    finally:
        os.chdir(cwd)
    assert scope["thresholds"] == pytest.approx(load_exported(place / "onnx").thresholds, abs=1e-3)


def test_parity_is_that_of_the_worst_label(place, made):
    task = task_of(made[0].task, place / "c")
    one = np.ones((100, 4))
    other = one.copy()
    other[:3, 2] = -1
    found = parity(task, one, other, [[0]] * 100)
    assert found["equal"] == 0.97 and found["equal_by_label"]["praise"] == 0.97
    model, tokenizer = unpack(model_file(made[0], place / "out")), load_tokenizer(made[0].family, "full")
    with pytest.raises(ParityError, match="predictions of a label equal"):
        export(model, place / "never", "onnx", tokenizer, task, equal=1.1)


def test_a_temperature_and_thresholds(place, made, shipped):
    texts, labels = zip(*((text_of(i), tags_of(i)) for i in range(2000, 2080)))
    shutil.copytree(place / "onnx", place / "warm")
    before = load_exported(place / "warm")
    calibrate(place / "warm", texts, labels)
    after = load_exported(place / "warm")
    assert after.about["temperature"] != 1
    assert [a["labels"] for a in after.predict(texts)] == [a["labels"] for a in before.predict(texts)]
    moved = move_thresholds(before.thresholds, 1, after.about["temperature"])
    assert "sigmoids of its logits; they are not" in (place / "saved" / "README.md").read_text()
    shutil.copytree(place / "saved", place / "saved-warm")
    calibrate(place / "saved-warm", texts, labels)
    assert "sigmoids of its logits divided by" in (place / "saved-warm" / "README.md").read_text()
    assert after.thresholds == pytest.approx(moved)
    with pytest.raises(ValueError, match="'good' is in one of them alone"):
        set_thresholds(place / "warm", dict(good=0.5))
    set_thresholds(place / "warm", dict.fromkeys(WORDS, 0.9))
    assert load_exported(place / "warm").thresholds == [0.9] * 4
    about = load_about(place / "warm")
    write_about(about | dict(thresholds=dict(a=0.5)), place / "warm")
    with pytest.raises(ValueError, match="export.json: the thresholds are of the labels a"):
        load_about(place / "warm")
    with pytest.raises(ValueError, match="'praise' is one label"):
        calibrate(place / "small.safetensors", texts, ["praise"] * 80)
    lines = [json.dumps(dict(text=t, tags=tags)) for t, tags in zip(texts, labels)]
    (place / "new.jsonl").write_text("\n".join(lines))
    code, _, err = do(
        f"calibrate {place}/small.safetensors --file {place}/new.jsonl --label tags --thresholds one"
    )
    assert code == 0 and len({*load(place / "small.safetensors").thresholds}) == 1, err
    said = refused(f"calibrate {place}/small.safetensors --thresholds one")
    assert "never chosen on the validation set" in said


def test_what_it_gets_wrong(place, made):
    "The report of each label, the matrix and the errors are those of the predictions in the outputs"
    found = examine(made[1], place / "out")
    predicted, labels = load_predictions(made[1]["id"], place / "out")
    assert found.report.loc["all together", "f1"] * 100 == pytest.approx(made[1]["score"])
    assert found.report.loc["mean of classes", "f1"] == pytest.approx(made[1]["macro_f1"])
    expected = f1_score(labels, predicted, average=None)
    assert found.report.loc[sorted(WORDS), "f1"].to_numpy() == pytest.approx(expected)
    worst = found.worst
    assert 0 < len(worst) <= 10 and {*worst} == {"text", "predicted", "label", "certainty"}
    for _, error in worst.iterrows():
        tag = error["label"].removeprefix("not ")
        i = int(error["text"].split()[1])
        assert (tag in tags_of(i)) == (error["label"] == tag) and error["predicted"] != error["label"]
    matrix = confusion(predicted, labels, 4)
    assert (np.diag(matrix) == (predicted & labels).sum(0)).all()
    assert examine(made[0], place / "out", n=3).worst.equals(worst.head(3))
    ax = found.plot()
    assert len(ax.get_xticklabels()) == 4
    # a file whose model is gone has no certainty, and the rest is there
    other = place / "no-model"
    shutil.copytree(place / "out" / "predictions", other / "predictions")
    assert examine(made[1], other).worst is None


def test_a_model_and_a_task_of_two_kinds(place, made, shipped):
    cfg = cfg_of(place, SINGLE, epochs=1)
    run(cfg, place / "out", log=QUIET)
    path, tokenizer = model_file(cfg, place / "out"), load_tokenizer(cfg.family, "full")
    pack(unpack(path), place / "single.safetensors", tokenizer)
    with pytest.raises(ValueError, match="several labels a text, and the model was trained for one"):
        export(unpack(path), place / "x", "onnx", tokenizer, made[0].task)
    with pytest.raises(ValueError, match="one label a text, and the model was trained for several"):
        export(unpack(model_file(made[0], place / "out")), place / "x", "onnx", tokenizer, cfg.task)
    said = refused(f"calibrate {place}/single.safetensors --file {place}/lists.jsonl --label tags")
    assert "has a list of labels in column 'tags', and the model gives one label a text" in said
    with pytest.raises(ValueError, match="thresholds='label' is for texts with several labels"):
        run(replace(cfg, recipe="v2(thresholds='label')"), place / "out", log=QUIET)


def test_balanced_classes_and_another_headline(place):
    "A rare class is found more often, in one label a text and in several"
    rare = [
        (f"word {i} is {'odd' if i % 12 == 0 else 'usual'} {i % 7}", "ab"[i % 12 == 0]) for i in range(240)
    ]
    pd.DataFrame(rare, columns=["text", "label"]).to_csv(place / "rare.csv", index=False)
    found = {}
    for recipe in ("v2", "v2(balanced=True)"):
        cfg = cfg_of(place, "rare.csv?metric=macro_f1", epochs=5, lr=2e-3, recipe=recipe)
        row = run(cfg, place / "out", log=QUIET)
        assert row["metric"] == "macro_f1" and row["score"] == 100 * row["macro_f1"]
        assert row["majority"] == pytest.approx(
            100 * f1_score([0] * 11 + [1], [0] * 12, average="macro"), abs=1.5
        )
        predicted, _ = load_predictions(row["id"], place / "out")
        found[recipe] = predicted.sum()
    assert found["v2(balanced=True)"] > found["v2"]
    several = run(cfg_of(place, epochs=2, recipe="v2(balanced=True)"), place / "out", log=QUIET)
    assert several["score"] > 0
    assert teacher_run(cfg).recipe == "v2(balanced=True)"


def test_names_of_tasks_without_new_options_are_as_before(place):
    name = resolve(f"file:{place}/{SINGLE}&metric=accuracy&kind=classification")
    assert name == resolve(f"file:{place}/{SINGLE}") and "labels=" not in name and "metric=" not in name
    assert Run(task="file:a.csv").recipe == "v2"
    with pytest.raises(ValueError, match="metric=f1 is for two classes, and there are 4"):
        resolve(f"file:{place}/{SINGLE}&metric=f1")
