"Thousands of damaged files of every kind that is kept: the damage is noticed and named, or the file reads as before"

import json, random, shutil, warnings

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from combcomp.basics import file_hashes, json_hash
from combcomp.compress.training import WHOLE, newest_checkpoint
from combcomp.models.encoders import load_tokenizer
from combcomp.ship.packed_file import pack, unpack
from combcomp.spec import Run
from combcomp.study.store import (
    load_predictions,
    load_results,
    load_rows,
    release,
    save_predictions,
    save_row,
)

TINY = dict(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
SEEDS = range(3)


def damaged(data, chance):
    "Bytes with some flipped, replaced, inserted or cut, or without their end"
    kind = chance.choice(("flip", "flip", "set", "insert", "cut", "end"))
    at, length = chance.randrange(len(data)), chance.choice((1, 1, 2, 8))
    new = chance.randbytes(length)
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == "end":
        return data[:at]
    return data[:at] + (b"" if kind == "cut" else new) + data[at + (0 if kind == "insert" else length) :]


def row_of(run):
    "A row as a run would leave it"
    fields = {k: getattr(run, k) for k in Run.__dataclass_fields__}
    return dict(fields, id=run.id, score=71.5 + run.seed, majority=50.0, commit="abc", mb_paper=12.5)


def a_packed_file(folder):
    "A model of one tiny layer: the file, and how it is read"
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**TINY)).eval()
    pack(model, folder / "m.safetensors")

    def read():
        found = unpack(folder / "m.safetensors")
        tensors = {k: v.numpy().tobytes() for k, v in found.state_dict().items()}
        return tensors, json.dumps(found.config.to_diff_dict(), sort_keys=True)

    return ["m.safetensors"], read


def rows(folder):
    "The rows of three runs"
    for seed in SEEDS:
        save_row(row_of(Run(seed=seed)), folder)
    return [f"runs/{Run(seed=seed).id}.json" for seed in SEEDS], lambda: load_rows(folder)


def a_release(folder):
    "A released table, its predictions and its manifest"
    for seed in SEEDS:
        run = Run(seed=seed)
        save_row(row_of(run), folder)
        save_predictions(run.id, np.eye(2)[[seed % 2, 1, 0]], [0, 1, 1], folder)
    release(folder)
    for kind in ("runs", "predictions"):
        shutil.rmtree(folder / kind)

    def read():
        table = load_results(folder).to_csv()
        return table, [load_predictions(Run(seed=seed).id, folder)[0].tolist() for seed in SEEDS]

    return ["results.csv", "results.json", "predictions.npz"], read


def a_checkpoint(folder):
    "The newest of two checkpoints; the older one is whole"
    for step in (1, 2):
        (place := folder / f"checkpoint-{step}").mkdir()
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (place / name).write_bytes(name.encode() * 20)
        notes = dict(files=file_hashes(place, [WHOLE]), seconds=1.5, order="00ff")
        (place / WHOLE).write_text(json.dumps(notes | dict(check=json_hash(notes))))
    names = [f"checkpoint-2/{p.name}" for p in sorted((folder / "checkpoint-2").iterdir())]

    def read():
        said = []
        found, notes = newest_checkpoint(folder, lambda text, **kwargs: said.append(text))
        if said:
            assert "checkpoint-2 is incomplete or damaged" in said[0] and found.endswith("checkpoint-1")
            raise ValueError(said[0])
        return found, notes

    return names, read


def an_export(folder):
    "A folder for ONNX Runtime"
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    from combcomp.ship.runtimes import export, load_exported

    torch.manual_seed(0)
    size = dict(TINY, vocab_size=30522, max_position_embeddings=32)
    model = BertForSequenceClassification(BertConfig(**size)).eval()
    export(model, folder, "onnx", tokenizer=load_tokenizer("minilm", "l1"), data=False, max_length=32)
    read = lambda: load_exported(folder, threads=1).logits(["a small test", "another one"]).tobytes()
    return sorted(p.name for p in folder.iterdir() if p.is_file()), read


KINDS = {a_packed_file: 400, rows: 400, a_release: 200, a_checkpoint: 400, an_export: 60}


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_damage_is_noticed_or_makes_no_difference(make, tmp_path, request):
    "Ten thousand files in all with --long"
    (folder := tmp_path / "files").mkdir()
    names, read = make(folder)
    whole = {name: (folder / name).read_bytes() for name in names}
    expected, chance, noticed = read(), random.Random(0), 0
    count = KINDS[make] * (7 if request.config.getoption("--long") else 1)
    for i in range(count):
        name = names[i % len(names)]
        for other, data in whole.items():  # a reader may have deleted what was damaged
            (folder / other).parent.mkdir(exist_ok=True)
            (folder / other).write_bytes(data)
        (folder / name).write_bytes(bad := damaged(whole[name], chance))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = read()
            except (ValueError, OSError) as e:  # what the readers promise; anything else is a raw error
                assert len(str(e)) > 10, (name, e)
                noticed += 1
                found = None
        if found is not None and found != expected:
            assert any("damaged" in str(w.message) or "edited" in str(w.message) for w in told), (
                name,
                i,
                bad[:2000],
            )
            noticed += 1
    assert noticed > 0.8 * count, f"{noticed} of {count}"
