"The family of small BERTs: stored weights, a run, texts, training that is interrupted, and what is refused before it"

import json, lzma, shutil

import numpy as np
import pytest
import torch

from combcomp import Run, cli, export, load_exported, run, sizes
from combcomp.data.loading import load_task
from combcomp.data.tasks import task_of
from combcomp.data.wordnet import all_synsets, first_hypernym, side_of
from combcomp.models import miniatures, pretraining
from combcomp.models.encoders import load_model, load_tokenizer, predict, source
from combcomp.models.miniatures import (
    miniature_folder,
    miniature_index,
    miniature_layout,
    read_miniature,
    weights_folder,
    write_miniature,
)
from combcomp.models.pretraining import (
    Corpus,
    Pretraining,
    make_miniature,
    plan_miniatures,
    pretrain,
    pretraining_texts,
    swap_neighbours,
)
from combcomp.ship.packed_file import stored_tokenizer, unpack
from combcomp.spec import FAMILIES
from combcomp.study.runner import model_file
from combcomp.study.store import load_predictions

QUIET = lambda *args, **kwargs: None
STORED = FAMILIES["miniature"][1:]
TEXTS = [
    f"the {a} {b} sees a {c}"
    for a in ("old", "red")
    for b in ("dog", "cat")
    for c in "tree house river".split()
]
TEXTS += [(text, f"something sees a {text.split()[-1]}") for text in TEXTS[:6]]
QUICK = dict(steps=7, batch_size=4)


# Stored weights


@pytest.mark.parametrize("size", STORED)
def test_stored_weights_are_whole(size):
    file, known = weights_folder() / f"{size}.xz", miniature_index()[size]
    tensors = read_miniature(file)
    layers, hidden = miniatures.miniature_shape(size)
    assert {k: v.shape for k, v in tensors.items()} == miniature_layout(layers, hidden, 30522, 512, 2)
    table = sizes("miniature").set_index("size")
    assert sum(v.size for v in tensors.values()) == known["parameters"] == table.encoder_parameters[size]
    assert file.stat().st_size <= 3e6 and {"texts", "steps", "batch_size", "rate"} <= {*known}


def test_every_miniature_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("COMBCOMP_OUTPUTS", str(tmp_path))
    assert {*miniature_index()} == {*STORED} and not (tmp_path / "cache").exists()
    tokenizer = load_tokenizer("miniature", "2x32")
    data = {"text": ["a warm day", "the price of bread rose again"]}
    for size in STORED:
        logits = predict(load_model("miniature", size, ("no", "yes")), tokenizer, data, ("text",))
        assert logits.shape == (2, 2) and np.isfinite(logits).all()
        shutil.rmtree(tmp_path / "cache")
    assert source("miniature", "6x384") == source("minilm", "l6")


def test_what_a_miniature_has_learned(tmp_path):
    "By the mean of its states, a sentence of like meaning is nearer than another"
    from transformers import AutoModel, AutoTokenizer

    folder = miniature_folder("4x96", tmp_path)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["a man plays the guitar", "someone is playing an instrument", "stock prices fell sharply"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states, mask = model.eval()(**batch).last_hidden_state, batch["attention_mask"][..., None]
    near, far = torch.cosine_similarity(means := (states * mask).sum(1) / mask.sum(1), means[:1])[1:]
    assert near > far + 0.1


def test_damaged_weights_are_named(tmp_path, monkeypatch):
    shutil.copytree(weights_folder(), tmp_path / "weights")
    monkeypatch.setattr(miniatures, "weights_folder", lambda: tmp_path / "weights")
    file = tmp_path / "weights" / "2x32.xz"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="2x32 are missing or damaged.*combcomp miniatures --sizes 2x32"):
        miniature_folder("2x32", tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="2x32 are missing or damaged"):
        miniature_folder("2x32", tmp_path)
    (tmp_path / "weights" / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is not valid JSON"):
        miniature_folder("3x48", tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "A stored file of one layer, and its arrays as they are stored"
    rng = np.random.default_rng(0)
    tensors = {
        n: rng.normal(size=s).astype(np.float32) for n, s in miniature_layout(1, 16, 60, 20, 2).items()
    }
    file = tmp_path_factory.mktemp("small") / "small.xz"
    write_miniature(tensors, file)
    return file.read_bytes(), miniatures.load(lzma.decompress(file.read_bytes()))


def test_damaged_and_cut_files_are_refused(small, tmp_path):
    data, file = small[0], tmp_path / "x.xz"
    for i in range(0, len(data), 197):
        file.write_bytes(data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1 :])
        with pytest.raises(ValueError, match="x.xz has no weights of a miniature"):
            read_miniature(file)
        file.write_bytes(data[:i])
        with pytest.raises(ValueError, match="x.xz has no weights of a miniature: it is cut short"):
            read_miniature(file)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda s: s.pop("pooler.dense.bias"), "'pooler.dense.bias' is missing"),
        (lambda s: s.update(more=np.zeros(3, np.float16)), "'more' is unknown"),
        (lambda s: s.update({"pooler.dense.bias": np.zeros(16, np.float32)}), "is float32"),
        (lambda s: s.update({"pooler.dense.weight": np.zeros((16, 17), np.int8)}), r"int8 \(16, 17\), not"),
        (lambda s: s.update({"pooler.dense.weight": np.full((16, 16), -128, np.int8)}), "integers above 12"),
        (lambda s: s.update({"pooler.dense.bias": np.full(16, np.nan, np.float16)}), "are no numbers"),
        (
            lambda s: s.update({"pooler.dense.weight.step": np.full((16, 1), np.inf, np.float16)}),
            "no numbers",
        ),
        (lambda s: s.pop("embeddings.word_embeddings.weight"), "no embedding tables"),
        (
            lambda s: s.update({"embeddings.word_embeddings.weight": np.zeros(3, np.int8)}),
            "no embedding tables",
        ),
        (lambda s: s.update({"encoder.layer.7": np.zeros(3, np.float16)}), "missing|unknown"),
        (lambda s: s.update({"encoder.layer.": np.zeros(3, np.float16)}), "missing|unknown"),
        (lambda s: s.clear(), "no embedding tables"),
    ],
)
def test_foreign_weights_are_refused(small, tmp_path, change, why):
    stored = dict(small[1])
    change(stored)
    (tmp_path / "x.xz").write_bytes(lzma.compress(miniatures.save(stored)))
    with pytest.raises(ValueError, match=f"x.xz has no weights of a miniature: .*{why}"):
        read_miniature(tmp_path / "x.xz")


def test_large_and_other_files_are_refused(small, tmp_path):
    file = tmp_path / "x.xz"
    for data, why in (
        (lzma.compress(bytes(10**8)), "64 MB"),
        (small[0] + b"more", "something follows"),
        (small[0] + small[0], "something follows"),
        (b"", "cut short"),
        (b"\x1f\x8b" + bytes(100), "not in xz"),
        (lzma.compress(b"\xff" * 100), "no weights"),
        (lzma.compress(b""), "no weights"),
    ):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"x.xz has no weights of a miniature: .*{why}|{why} of a mini"):
            read_miniature(file)
    with pytest.raises(FileNotFoundError):
        read_miniature(tmp_path / "nowhere")


# A run


def test_a_compressed_run(out, monkeypatch):
    "What is packed, loaded and exported is what was measured"
    monkeypatch.setenv("COMBCOMP_OUTPUTS", str(out))
    cfg = Run(family="miniature", size="2x32", task="accept", methods="mp,qat", limit=64, epochs=1)
    row, path = run(cfg, log=QUIET), model_file(cfg)
    assert row["parameters"] == miniature_index()["2x32"]["parameters"] + 2 * 33 and row["mb_file"] < 1.2
    data, task = load_task("accept", cache=out / "cache")["validation"], task_of("accept")
    model, tokenizer = unpack(path), load_tokenizer("miniature", "2x32")
    logits = predict(model, tokenizer, data, task.texts)
    assert (logits.argmax(-1) == load_predictions(cfg.id)[0]).all()
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    about = export(model, out / "shipped", "onnx", tokenizer, "accept", data.select(range(200)))
    assert about["parity"]["equal"] >= 0.99
    assert load_exported(out / "shipped").predict(["a tree"])[0]["label"] in about["labels"]


# Texts


def test_no_text_is_from_the_validation_side():
    "A gloss of that side is seen only where a synset of the training side has the same"
    glosses = {side: set() for side in ("train", "validation")}
    for pos in "nvar":
        for synset in all_synsets(pos):
            side = "train" if side_of(synset) == "train" else "validation"
            glosses[side] |= {synset.definition(), *synset.examples()}
    texts = pretraining_texts()
    seen = {t for text in texts for t in ([text] if isinstance(text, str) else text)}
    assert len(seen) > 90_000 and seen <= glosses["train"]
    assert len(glosses["validation"] - glosses["train"]) > 1000
    assert pretraining_texts() == texts and pretraining_texts(seed=1) != texts


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  zwei ä \nthree".encode())
    assert sorted(pretraining_texts(str(tmp_path / "a.txt"))) == ["one", "three", "zwei ä"]
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n\n")
    for name, why in (
        ("latin.txt", "latin.txt is not in UTF-8"),
        ("empty.txt", "empty.txt has no lines of text"),
        ("nowhere.txt", "is not allowed; texts is one of 'wordnet', 'glue', 'a text file"),
        ("", "is not allowed"),
    ):
        with pytest.raises(ValueError, match=why):
            pretraining_texts(str(tmp_path / name) if name else name)
    with pytest.raises(ValueError, match="names wordnet twice"):
        pretraining_texts("wordnet + wordnet")
    with pytest.raises(ValueError, match="texts=''"):
        pretraining_texts("wordnet+")


@pytest.fixture(scope="module")
def teacher():
    "MiniLM and its tokenizer"
    from transformers import AutoModel, AutoTokenizer

    folder = miniatures.minilm_folder()
    return AutoModel.from_pretrained(folder, dtype="float32").eval(), AutoTokenizer.from_pretrained(folder)


def test_corpus(teacher):
    corpus = Corpus(TEXTS, teacher[1], length=12)
    for row, text in enumerate(TEXTS):
        texts = [text] if isinstance(text, str) else text
        encoded = teacher[1](*texts, truncation=True, max_length=12)
        assert corpus.ids[row, : corpus.lengths[row]].tolist() == encoded["input_ids"]
        assert corpus.types[row, : corpus.lengths[row]].tolist() == encoded["token_type_ids"]
    batches = corpus.batches(4, seed=0, epoch=0)
    assert (
        len(batches) == 4 and len({*np.concatenate(batches)}) == 16
    ), "two of 18 texts wait for the next epoch"
    flat = lambda batches: [[*map(int, b)] for b in batches]
    assert (
        flat(batches) == flat(corpus.batches(4, seed=0, epoch=0)) != flat(corpus.batches(4, seed=0, epoch=1))
    )
    assert len(corpus.batches(1000, seed=0, epoch=0)) == 1, "fewer texts than a batch"
    batch = corpus.batch(batches[0])
    assert (
        batch["input_ids"].shape[1] in (8, 12)
        and (batch["attention_mask"].sum(1) == torch.tensor(corpus.lengths[batches[0]])).all()
    )
    assert corpus.counts(30522)[0] == 0 and corpus.counts(30522).sum() == corpus.lengths.sum()


def test_swapped_neighbours():
    ids, lengths = np.arange(2000).reshape(200, 10), np.tile([3, 4, 5, 10], 50)
    swapped = swap_neighbours(ids, lengths, 1.0, np.random.default_rng(0))
    changed = swapped != ids
    assert (changed.sum(1) == np.where(lengths > 4, 2, 0)).all()
    assert not changed[:, 0].any() and not changed[np.arange(200), lengths - 1].any()
    assert not any(changed[i, n:].any() for i, n in enumerate(lengths))
    assert (swap_neighbours(ids, lengths, 0.0, np.random.default_rng(0)) == ids).all()
    assert 20 < (swap_neighbours(ids, lengths, 0.5, np.random.default_rng(0)) != ids).any(1).sum() < 80


# Training


class Stop(Exception):
    pass


def interrupted(monkeypatch, step, **words):
    "A training that is stopped after a step"
    update = pretraining.Training.update

    def stopping(self):
        if self.step == step:
            raise Stop
        update(self)

    with monkeypatch.context() as m, pytest.raises(Stop):
        m.setattr(pretraining.Training, "update", stopping)
        pretrain("2x32", TEXTS, log=QUIET, **QUICK, **words)


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole():
    return pretrain("2x32", TEXTS, log=QUIET, **QUICK)


@pytest.mark.parametrize(
    "step", [1, 4, 6]
)  # an epoch has four steps, and the words are frozen before the last
def test_a_resumed_training_has_the_same_bits(whole, step, tmp_path, monkeypatch):
    interrupted(monkeypatch, step, folder=tmp_path, checkpoint=-1)
    lines = []
    log = lambda line, **more: lines.append(line)
    again = pretrain("2x32", TEXTS, log=log, folder=tmp_path, **QUICK)
    assert equal(again.model, whole.model) and again.losses == whole.losses
    assert lines[0] == f"  2x32: resumed at step {step}/7" and len(lines) == 2


def test_a_damaged_checkpoint_is_deleted(whole, tmp_path, monkeypatch):
    interrupted(monkeypatch, 3, folder=tmp_path, checkpoint=-1)
    (path,) = tmp_path.glob("*/checkpoint-*")
    assert path.name == "checkpoint-00000003", "older ones are deleted"
    shutil.copytree(path, path.with_name("checkpoint-00000002"))
    data = bytearray((path / "training.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "training.safetensors").write_bytes(data)
    (path.with_name("checkpoint-00000002") / "done").unlink()
    empty = path.with_name("checkpoint-00000001")
    empty.mkdir()
    (empty / "done").write_text("{}")
    lines = []
    again = pretrain("2x32", TEXTS, log=lambda line, **more: lines.append(line), folder=tmp_path, **QUICK)
    assert [l.split()[0] for l in lines[:3]] == [f"checkpoint-0000000{i}" for i in (3, 2, 1)] and len(
        lines
    ) == 4
    assert all("is incomplete or damaged, and is deleted" in line for line in lines[:3])
    assert equal(again.model, whole.model) and not [*tmp_path.glob("*/*")]


def test_a_checkpoint_of_another_training_is_an_error(tmp_path, monkeypatch):
    interrupted(monkeypatch, 3, folder=tmp_path, checkpoint=-1)
    (place,) = tmp_path.iterdir()
    other = pretraining.training_key(Pretraining("2x32", seed=1, **QUICK), TEXTS)[:16]
    shutil.copytree(place, tmp_path / other)
    with pytest.raises(ValueError, match="checkpoint-00000003 is of another training"):
        pretrain("2x32", TEXTS, seed=1, log=QUIET, folder=tmp_path, **QUICK)


def test_what_identifies_a_training():
    base = Pretraining("2x32")
    others = [
        Pretraining("3x32"),
        *(
            Pretraining("2x32", **{k: v})
            for k, v in dict(steps=9, batch_size=9, rate=0.1, seed=9, swap=0.9).items()
        ),
    ]
    keys = {pretraining.training_key(o, TEXTS) for o in (base, *others)} | {
        pretraining.training_key(base, TEXTS[1:])
    }
    assert len(keys) == 8 and pretraining.training_key(Pretraining("2x32"), [*TEXTS]) in keys


def test_a_loss_that_is_no_number_stops_the_training(teacher, tmp_path):
    training = pretraining.Training(
        Pretraining("2x32", rate=1, **QUICK), Corpus(TEXTS, teacher[1]), teacher[0]
    )
    training.update()
    with torch.no_grad():
        training.student.maps[-1].bias.fill_(torch.inf)
    training.update()
    why = r"2x32: the loss became (nan|inf) at step 2; try a lower rate than 1"
    with pytest.raises(FloatingPointError, match=why):
        pretraining.save_training(training, tmp_path)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(FloatingPointError, match=why):
        while training.step < 7:
            training.update()


# A miniature from end to end, and what is refused before


def test_make_miniature(tmp_path):
    (tmp_path / "mine.txt").write_text("\n".join(t for t in TEXTS if isinstance(t, str)))
    words = dict(texts=str(tmp_path / "mine.txt"), outputs=tmp_path / "out", **QUICK)
    lines = []
    log = lambda line, **more: lines.append(line)
    folder = make_miniature("2x32", log=log, **words)
    assert folder == tmp_path / "out" / "miniatures" / "2x32"
    assert {p.name for p in folder.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "miniature.json",
    }
    how = json.loads((folder / "miniature.json").read_text())
    assert (how["texts"], how["steps"], how["count"]) == ("mine.txt", 7, 12) and {*how["losses"]} == {
        "states",
        "texts",
    }
    assert not [*(tmp_path / "out" / "cache" / "pretraining").glob("*")]
    del lines[:]
    assert (
        make_miniature("2x32", log=log, **words) == folder and "2x32: is made" in lines[0] and len(lines) == 1
    )
    with pytest.raises(ValueError, match="was made in another way .*steps=7.*now.*steps=8"):
        make_miniature("2x32", **words | dict(steps=8))
    model = load_model(str(folder), "full", ("no", "yes"))
    logits = predict(model, load_tokenizer(str(folder), "full"), {"text": ["a dog", "a cat"]}, ("text",))
    assert np.isfinite(logits).all() and model.config.hidden_size == 32
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a complete miniature"):
        make_miniature("2x32", **words)


@pytest.mark.parametrize(
    "line, why",
    [
        ("--sizes 2x32,4x97", "a width that 16 divides"),
        ("--sizes l6", "layers x width, as in 4x96, up to 6x384"),
        ("--sizes 7x96", "up to 6x384"),
        ("--sizes ,", "with commas between them"),
        ("--texts wikipedia", "--texts 'wikipedia' is not allowed"),
        ("--texts wordnet+nowhere.txt", "'nowhere.txt' is not allowed"),
        ("--steps 0", "--steps '0'"),
        ("--steps 1.5", "invalid int value"),
        ("--batch_size 0", "--batch_size '0'"),
        ("--rate 0", "--rate '0.0'"),
        ("--rate nan", "--rate 'nan'"),
        ("--rate 2", "--rate '2.0'"),
        ("--seed -1", "--seed '-1'"),
        ("--size 4x96", "did you mean '--sizes'"),
    ],
)
def test_the_command_refuses(line, why, tmp_path, capsys):
    assert cli.main(["miniatures", *line.split(), "--outputs", str(tmp_path)]) == 2
    assert why in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_the_command_has_the_defaults_of_the_library(tmp_path, capsys):
    table = cli.COMMANDS["miniatures"].options
    assert all(table[k].default == getattr(Pretraining, k) for k in ("steps", "batch_size", "rate", "seed"))
    (tmp_path / "mine.txt").write_text("\n".join(t for t in TEXTS if isinstance(t, str)))
    words = f"miniatures --sizes 1x16,2x32 --texts {tmp_path / 'mine.txt'} --steps 2 --batch_size 4 --json".split()
    assert cli.main([*words, "--outputs", str(tmp_path)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [m["size"] for m in made] == ["1x16", "2x32"]
    assert (tmp_path / "miniatures" / "1x16" / "model.safetensors").is_file()
    (plan,) = plan_miniatures(["2x32"], str(tmp_path / "mine.txt"), 2, 4, outputs=tmp_path)
    assert pretraining.is_made(plan)
