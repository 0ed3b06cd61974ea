"Trimmed vocabularies: no word is lost, the tokenizer travels with the model, and what cannot work fails before training"

import json, lzma, shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPO, tiny_family
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from combcomp import Run, load, run, save_pretrained
from combcomp.compress.vocabulary import Trim
from combcomp.data.loading import load_task
from combcomp.data.tasks import task_of
from combcomp.data.wordnet import all_synsets, wordnet
from combcomp.models.encoders import load_model, load_tokenizer, predict
from combcomp.models.tokenizers import (
    choose_pieces,
    dump_tokenizer,
    needed_pieces,
    parse_tokenizer,
    tokenizer_parts,
    trim_tokenizer,
)
from combcomp.ship.packed_file import CorruptFile, inspect, stored_tokenizer, unpack
from combcomp.ship.runtimes import export, load_exported
from combcomp.spec import GLUE, TASKS, Vocab
from combcomp.study.runner import model_file
from combcomp.study.store import load_predictions, read_row

QUIET = lambda *args, **kwargs: None
TINY = tiny_family()
FEW = dict(family=TINY, size="l1", task="accept", limit=96, epochs=1)


@pytest.fixture(scope="module")
def whole():
    return load_tokenizer("minilm", "l1")


@pytest.fixture(scope="module")
def least(whole):
    "A tokenizer with as few pieces as there can be"
    return trim_tokenizer(
        whole, choose_pieces(whole, np.zeros(len(whole)), len(needed_pieces(tokenizer_parts(whole))))
    )


def unknown(tokenizer, texts):
    "The texts that have an unknown piece, by number"
    unk = tokenizer.unk_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return {i for i, pieces in enumerate(encoded) if unk in pieces.ids}


def test_no_word_of_wordnet_is_lost(whole, least):
    "All 147,000 lemmas, and a fifth of the glosses and examples"
    lemmas = sorted({lemma.replace("_", " ") for lemma in wordnet().all_lemma_names()})
    synsets = [synset for pos in "nvar" for synset in all_synsets(pos)]
    texts = [text for synset in synsets[::5] for text in (synset.definition(), *synset.examples())]
    assert len(lemmas) > 147_000 and len(texts) > 30_000
    assert not unknown(least, lemmas)
    assert unknown(least, texts) <= unknown(whole, texts)


@pytest.mark.parametrize("task", GLUE)
def test_no_word_of_glue_is_lost(whole, least, task):
    "Thousands of texts of each task, where GLUE is beside the checkout as development data"
    files = sorted((REPO.parent / "shared" / "glue" / task).glob("validation*.parquet"))
    if not files:
        pytest.skip("development data (GLUE) not beside the checkout")
    table = pq.read_table(files[0]).slice(0, 5000)
    texts = [text for name in TASKS[task].texts for text in table[name].to_pylist()]
    assert len(texts) >= 277 and unknown(least, texts) == unknown(whole, texts)


def test_characters_without_a_piece_of_their_own_stay_readable(whole):
    "A vocabulary in which one is found inside longer pieces alone: those pieces are needed"
    parts = tokenizer_parts(whole)
    vocab = parts["model"]["vocab"]
    with_q = {piece for piece in vocab if piece.startswith("##") and "q" in piece or "q" in piece[1:]}
    assert "##q" in with_q and len(with_q) > 50
    before = needed_pieces(parts)
    del vocab["##q"]
    assert needed_pieces(parts) - before == {vocab[piece] for piece in with_q - {"##q"}} - before


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    "A finished run, with its folder"
    out, cfg = tmp_path_factory.mktemp("vocabulary"), Run(methods="mp,qat,vocab(rows=3000)", **FEW)
    shutil.copytree(cache, out / "cache")
    run(cfg, out, log=QUIET)
    return cfg, out


def test_the_tokenizer_travels_with_the_model(trained, tmp_path):
    "Packed file, saved folder, plain transformers and both runtimes predict what was evaluated"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    cfg, out = trained
    task, data = task_of("accept"), load_task("accept")["validation"]
    texts = data["sentence"][:200]
    expected = predict(unpack(model_file(cfg, out)), stored_tokenizer(model_file(cfg, out)), data, task.texts)
    assert np.array_equal(expected.argmax(1), load_predictions(cfg.id, out)[0])
    (tmp_path / "alone.safetensors").write_bytes(
        model_file(cfg, out).read_bytes()
    )  # no row and no folder beside it
    folder = save_pretrained(cfg, tmp_path / "saved", out)
    for place in (tmp_path / "alone.safetensors", folder):
        assert np.allclose(load(place).logits(texts), expected[:200], atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        len(tokenizer) == 3000 and tokenizer(texts)["input_ids"] == load(folder).tokenizer(texts)["input_ids"]
    )
    for runtime in ("onnx", "openvino"):
        export(unpack(model_file(cfg, out)), tmp_path / runtime, runtime, load(folder).tokenizer, task, data)
        exported = load_exported(tmp_path / runtime)
        assert exported.about["vocab_size"] == 3000 and exported.about["parity"]["equal"] > 0.98


def test_size_and_parameters_are_those_of_the_small_table(trained):
    cfg, out = trained
    row, whole = read_row(cfg.id, out), load_model(TINY, "l1", ("no", "yes")).num_parameters()
    assert row["parameters"] == whole - (30522 - 3000) * 32
    assert row["mb_file"] * 1e6 == model_file(cfg, out).stat().st_size
    assert (
        inspect(model_file(cfg, out))["version"] == 2
        and inspect(model_file(cfg, out))["vocabulary"]["bytes"] < 15_000
    )


def test_quantizing_after_training_reads_the_trimmed_tokenizer(out):
    "The run that it starts from has the vocabulary, and both have the same one"
    cfg = Run(methods="ptq,vocab(rows=3000)", **FEW)
    run(cfg, out, log=QUIET)
    base = Run(methods="vocab(rows=3000)", **FEW)
    first, second = (dump_tokenizer(stored_tokenizer(model_file(r, out))) for r in (cfg, base))
    assert (
        first == second
        and inspect(model_file(cfg, out))["bytes"] < inspect(model_file(base, out))["bytes"] / 3
    )


def test_a_student_is_trimmed_and_its_teacher_is_not(out):
    methods, recipe = "kd(transfer=50),vocab(rows=3000)", "v2(min_steps=30)"
    cfg = Run(family=TINY, size="l1", methods=methods, limit=96, recipe=recipe)
    row = run(cfg, out, log=QUIET)
    sizes = {inspect(p)["config"]["vocab_size"] for p in (out / "models").glob("*.safetensors")}
    assert sizes == {3000, 30522} and row["transfer_examples"] == 50


@pytest.mark.parametrize(
    "methods, message",
    [
        ("kd,vocab(rows=500)", "rows='500' is not allowed; rows is 1,999 "),
        ("kd,vocab(rows=30523)", r"to 30,522 \(all\)"),
        ("qat > vocab", "put vocab in the first stage"),
        ("vocab(rows=0)", "rows='0' is not allowed"),
        ("vocab(row=9000)", "did you mean 'rows'"),
    ],
)
def test_what_cannot_work_fails_before_anything_is_trained(tmp_path, methods, message):
    "Also before the teacher is"
    with pytest.raises(ValueError, match=message):
        run(Run(methods=methods, **FEW), tmp_path, log=QUIET)
    assert not [*tmp_path.rglob("*.safetensors")]


def unigram_encoder(folder, texts):
    "A small random BERT with a Unigram tokenizer that was trained on some texts, as a folder"
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, unk_token="<unk>", show_progress=False, special_tokens=special
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(piece, tokenizer.token_to_id(piece)) for piece in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = dict(bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=128, **names
    )
    fast.save_pretrained(folder)
    shape = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=128)
    config = BertConfig(vocab_size=len(fast), pad_token_id=1, max_position_embeddings=128, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    return fast


def test_a_unigram_vocabulary_is_trimmed_like_any_other(tmp_path, out):
    "An encoder of one's own with such a tokenizer, from training to a file that predicts the same"
    data = load_task("accept")
    whole = unigram_encoder(tmp_path / "mine", data["train"]["sentence"])
    cfg = Run(methods="qat,vocab(rows=900)", **{**FEW, "family": str(tmp_path / "mine"), "size": "full"})
    row = run(cfg, out, log=QUIET)
    file = model_file(cfg, out)
    trimmed, texts = stored_tokenizer(file), data["validation"]["sentence"][:]
    assert len(trimmed) == 900 and inspect(file)["config"]["vocab_size"] == 900 < len(whole)
    assert unknown(trimmed, texts) <= unknown(whole, texts)
    longer = sum(map(len, trimmed(texts)["input_ids"])) / sum(map(len, whole(texts)["input_ids"]))
    assert 1 < longer < 1.5, "words that lost their piece are split"
    again = predict(unpack(file), trimmed, data["validation"], ("sentence",)).argmax(1)
    assert np.array_equal(again, load_predictions(cfg.id, out)[0]) and row["mb_file"] < 1


def test_other_tokenizers_are_refused():
    bpe = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    with pytest.raises(ValueError, match="'BPE .* is not allowed; tokenizer is WordPiece or Unigram"):
        Trim(Vocab()).check(bpe)


def test_damaged_and_forged_tokenizers_are_one_named_error(trained, tmp_path):
    "A flipped bit, a bomb, and what is no tokenizer"
    cfg, out = trained
    data, path = bytearray(model_file(cfg, out).read_bytes()), tmp_path / "bad.safetensors"
    at = data.find(b"\xfd7zXZ\x00")
    data[at + 2000] ^= 1
    path.write_bytes(data)
    for reader in (unpack, stored_tokenizer):
        with pytest.raises(CorruptFile, match="the tokenizer does not match its checksum"):
            reader(path)
    bomb = lzma.compress(b" " * 10**7 + json.dumps(dict(parts={})).encode())
    for bad in (bomb, b"\xfd7zXZ\x00", lzma.compress(b"[1]"), b""):
        with pytest.raises(ValueError, match="the tokenizer in the file is damaged"):
            parse_tokenizer(bad, 10**6)
