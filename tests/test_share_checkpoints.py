"A fine-tuned folder of transformers is quantized, trimmed and packed without training and without labels"

import json, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from test_cli import do, refused

import combcomp
from combcomp import load, unpack
from combcomp.models.encoders import source
from combcomp.share.checkpoints import shrink
from combcomp.ship.packed_file import inspect, stored_tokenizer

TEXTS = [
    f"the soup number {i} was {('good', 'cold', 'late')[i % 3]} and {i % 7} people came" for i in range(120)
]
SHAPE = dict(num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Folders as transformers writes them: one label a text, several, and a number"
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = transformers.BertTokenizerFast(str(Path(source("minilm", "l1")) / "vocab.txt"))
    kinds = dict(
        single=dict(id2label={0: "no", 1: "yes"}),
        several=dict(id2label={0: "a", 1: "b", 2: "c"}, problem_type="multi_label_classification"),
        number=dict(id2label={0: "score"}, problem_type="regression"),
    )
    for name, fields in kinds.items():
        transformers.set_seed(0)
        names = dict(label2id={v: k for k, v in fields["id2label"].items()})
        model = transformers.BertForSequenceClassification(
            transformers.BertConfig(**SHAPE, **fields, **names)
        )
        with torch.no_grad():
            model.classifier.weight *= 30
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "more.txt").write_text("\n".join(TEXTS))
    labels = ["yes" if i % 2 else "no" for i in range(120)]
    pd.DataFrame(dict(text=TEXTS, label=labels)).to_csv(folder / "labelled.csv", index=False)
    return folder


def test_without_a_label(place, tmp_path):
    found = shrink(place / "single", tmp_path / "s.safetensors", TEXTS)
    assert found.equal > 0.9 and found.metric == "" and found.calibrated == found.compared == 120
    assert found.mb_before == pytest.approx((place / "single/model.safetensors").stat().st_size / 1e6)
    assert found.mb_after == (tmp_path / "s.safetensors").stat().st_size / 1e6 < found.mb_before / 3
    model = unpack(tmp_path / "s.safetensors")
    assert model.bert.encoder.layer[0].attention.self.query.weight_bits == 8
    about = inspect(tmp_path / "s.safetensors")
    assert about["inputs"] and about["config"]["combcomp"]["methods"] == "ptq"
    answers = load(tmp_path / "s.safetensors").predict(TEXTS)
    original = transformers.AutoModelForSequenceClassification.from_pretrained(place / "single").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(place / "single")(
        TEXTS, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        before = original(**tokens).logits.argmax(1)
    same = np.mean([a["label"] == original.config.id2label[int(i)] for a, i in zip(answers, before)])
    assert same == pytest.approx(found.equal, abs=0.03)
    assert combcomp.shrink is shrink


def test_the_vocabulary_is_that_of_the_texts(place, tmp_path):
    found = shrink(
        place / "single", tmp_path / "v.safetensors", TEXTS, methods="vocab(rows=3000),ptq(bits=4)"
    )
    tokenizer = stored_tokenizer(tmp_path / "v.safetensors")
    assert len(tokenizer) == 3000 and tokenizer.tokenize(TEXTS[0]) == TEXTS[0].split()
    plain = shrink(place / "single", tmp_path / "w.safetensors", TEXTS)
    assert found.mb_after < plain.mb_after / 2
    only = shrink(place / "single", tmp_path / "x.safetensors", TEXTS, methods="vocab(rows=3000)")
    assert only.equal == 1 and not inspect(tmp_path / "x.safetensors")["inputs"]


def test_scores_are_of_texts_that_did_not_calibrate(place, tmp_path):
    labels = ["yes" if i % 2 else "no" for i in range(120)]
    found = shrink(place / "single", tmp_path / "s.safetensors", TEXTS, labels)
    assert (found.calibrated, found.compared, found.metric) == (60, 60, "accuracy")
    assert abs(found.before - found.after) <= 100 * (1 - found.equal) + 1e-9 and "accuracy" in str(found)
    ids = shrink(place / "single", tmp_path / "s.safetensors", TEXTS, [i % 2 for i in range(120)])
    assert ids.before == found.before
    lists = [["a"] * (i % 2) + ["c"] * (i % 3 == 0) for i in range(120)]
    several = shrink(place / "several", tmp_path / "m.safetensors", TEXTS, lists)
    assert several.metric == "micro_f1" and "labels" in load(tmp_path / "m.safetensors").predict(TEXTS[0])[0]
    number = shrink(place / "number", tmp_path / "n.safetensors", TEXTS, [i / 7 for i in range(120)])
    assert number.metric == "pearson"
    pairs = [(t, "it was good") for t in TEXTS]
    shrink(place / "single", tmp_path / "p.safetensors", pairs)
    assert load(tmp_path / "p.safetensors").about["pairs"] is True


def test_from_the_command_line(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = do(
        f"compress {place}/single --methods ptq --texts {place}/more.txt -o small.safetensors"
    )
    assert code == 0 and "MB before" in out and "answers are equal" in out, err
    code, out, _ = do(f"compress {place}/single --texts {place}/labelled.csv --json")
    assert code == 0 and json.loads(out)["metric"] == "accuracy" and Path("single.safetensors").is_file()
    code, out, err = do(f"export small.safetensors -o shipped --runtime onnx --task none")
    assert code == 0 and "of 8 linear layers in int8" in out, err
    assert do(f"predict shipped {place}/more.txt -o labels.csv")[0] == 0


@pytest.mark.parametrize(
    "line, message",
    [
        ("single --texts more.txt --methods kd,ptq", "kd acts in training, .*`combcomp run kd,ptq --family"),
        ("single --texts more.txt --methods qat", "qat acts in training"),
        ("single --texts more.txt --methods mp", "`combcomp run mp --family"),
        ("single", "which texts will it read"),
        ("single --texts none.txt", "there is no file"),
        ("single --texts labelled.csv --label tone", "no column 'tone'"),
        (
            "several --texts labelled.csv --label label",
            "label 'no' is not allowed|'no' is not allowed; label is one of 'a', 'b', 'c'",
        ),
        ("number --texts labelled.csv --label label", "'no' in column|could not convert|not a number"),
        ("more.txt --texts more.txt", "is no folder"),
        ("single --texts more.txt --methods 'vocab(rows=30)'", "vocab: rows="),
        ("single --texts more.txt --max_length 1000", "'1000' is not allowed; max_length is an int"),
        ("empty --texts more.txt", "holds no config.json"),
        ("untokenized --texts more.txt", "holds no tokenizer"),
    ],
)
def test_what_is_refused_before_anything_is_written(place, tmp_path, monkeypatch, line, message):
    import re

    (place / "empty").mkdir(exist_ok=True)
    if not (place / "untokenized").exists():
        shutil.copytree(
            place / "single", place / "untokenized", ignore=shutil.ignore_patterns("*token*", "vocab*")
        )
    monkeypatch.chdir(place)
    said = refused(f"compress {line} -o {tmp_path}/x.safetensors")
    assert re.search(message, said), said
    assert not [*tmp_path.iterdir()]
