"""Any encoder: nine architectures, each small and with random weights, through every subset of the methods, the packed
file, both runtimes, cuts, and what must fail before training"""

import ast, json, re, shutil
from itertools import islice

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.utils import parametrize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
import transformers

from conftest import MODULES, module_of
from combcomp import Run, export, load, load_exported, pack, run, save_pretrained, sizes, unpack
from combcomp.compress.methods import convert, embeddings, encoder_linears, linears, prepare, total_loss
from combcomp.compress.training import build
from combcomp.compress.vocabulary import Trim
from combcomp.data.wordnet import all_synsets
from combcomp.models.adapters import ADAPTERS, adapter_of
from combcomp.models.encoders import cut, load_model, load_tokenizer, predict
from combcomp.ship.model_size import sizes_of
from combcomp.ship.packed_file import CorruptFile, check_config, inspect, skeleton
from combcomp.ship.runtimes import graph_inputs
from combcomp.spec import SUBSETS, Vocab, parse
from combcomp.study.runner import model_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
QUIET = lambda *args, **kwargs: None
PIECES = 600
SIZE = dict(
    vocab_size=PIECES, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
)
DEBERTA = dict(relative_attention=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=64)
V3 = dict(share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm", position_biased_input=False)
# name -> (configuration class, fields, kind of tokenizer, id of the padding)
ENCODERS = dict(
    bert=("BertConfig", SIZE | dict(max_position_embeddings=64), "WordPiece"),
    roberta=("RobertaConfig", SIZE | dict(max_position_embeddings=66, type_vocab_size=1), "BPE"),
    xlm_roberta=("XLMRobertaConfig", SIZE | dict(max_position_embeddings=66, type_vocab_size=1), "Unigram"),
    electra=("ElectraConfig", SIZE | dict(max_position_embeddings=64, embedding_size=16), "WordPiece"),
    distilbert=(
        "DistilBertConfig",
        dict(vocab_size=PIECES, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=64),
        "WordPiece",
    ),
    mpnet=("MPNetConfig", SIZE | dict(max_position_embeddings=66), "WordPiece"),
    modernbert=(
        "ModernBertConfig",
        SIZE
        | dict(local_attention=8, max_position_embeddings=64)
        | dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        "BPE",
    ),
    deberta_v3=("DebertaV2Config", SIZE | DEBERTA | V3, "Unigram"),
    deberta_v2=("DebertaV2Config", SIZE | DEBERTA | dict(type_vocab_size=2, conv_kernel_size=3), "Unigram"),
)
LABELS = ("animal", "plant", "act")
INPUTS = [
    "input_ids",
    "token_type_ids",
    "attention_mask",
]  # of every tokenizer, also where the encoder reads fewer


@pytest.fixture(scope="module")
def texts():
    "Glosses of WordNet"
    return [synset.definition() for synset in islice(all_synsets("n"), 0, 6000, 5)]


def train_tokenizer(kind, texts):
    "A tokenizer of a kind, trained on texts; its padding has id 1 and its unknown piece id 3"
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    model = dict(WordPiece=models.WordPiece(unk_token="<unk>"), BPE=models.BPE(), Unigram=models.Unigram())[
        kind
    ]
    tok = Tokenizer(model)
    if kind == "BPE":
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet)
    elif kind == "Unigram":
        tok.normalizer, tok.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=PIECES, special_tokens=special, unk_token="<unk>")
    else:
        tok.normalizer, tok.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=PIECES, special_tokens=special)
    tok.train_from_iterator(texts, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
    )
    names = dict(bos_token="<s>", cls_token="<s>", sep_token="</s>", eos_token="</s>", pad_token="<pad>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="<unk>", model_max_length=64, model_input_names=INPUTS, **names
    )


@pytest.fixture(scope="module")
def tokenizers(texts):
    return {kind: train_tokenizer(kind, texts) for kind in ("WordPiece", "BPE", "Unigram")}


def config_of(name, **changed):
    cls, fields, _ = ENCODERS[name]
    return getattr(transformers, cls)(**dict(fields, pad_token_id=1) | changed)


@pytest.fixture(scope="module")
def folders(tokenizers, tmp_path_factory):
    "A transformers folder for each architecture"
    place = tmp_path_factory.mktemp("encoders")
    for name, (_, _, kind) in ENCODERS.items():
        torch.manual_seed(0)
        model = AutoModel.from_config(config_of(name))
        for p in model.parameters():
            if p.dim() > 1:
                p.data.normal_(0, 0.15)
        model.save_pretrained(place / name)
        tokenizers[kind].save_pretrained(place / name)
    return place


@pytest.fixture(scope="module")
def batches(folders, texts):
    "For each architecture, what its tokenizer makes of texts: of different lengths, with padding, and pairs"

    def make(name):
        tok = load_tokenizer(str(folders / name), "full")
        cut_after = dict(padding=True, truncation=True, max_length=24, return_tensors="pt")
        single, pairs = tok(texts[:16], **cut_after), tok(texts[16:24], texts[24:32], **cut_after)
        return [dict(single), dict(pairs)]

    return {name: make(name) for name in ENCODERS}


def few_steps(model, methods, batches, steps=3):
    "A few steps of training, with a pretended teacher"
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    for step in range(steps):
        batch = batches[step % len(batches)]
        count = len(batch["input_ids"])
        more = dict(labels=torch.arange(count) % len(LABELS), teacher=torch.randn(count, len(LABELS)))
        out = model(**batch, labels=more["labels"])
        total_loss(methods, out.loss, out, batch | more).backward()
        optimizer.step()
        optimizer.zero_grad()
        for method in methods:
            method.step((step + 1) / steps)
    return model.eval()


@torch.inference_mode()
def logits(model, batches):
    return [model(**batch).logits for batch in batches]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def compressed(name, methods, folders, batches):
    "(the live logits, the converted model) after a few steps"
    model = load_model(str(folders / name), "full", LABELS)
    prepared = prepare(model, build(parse(methods)[0]) if methods else [])
    few_steps(model, prepared, batches[name])
    return logits(model, batches[name]), convert(model, prepared)


# Every subset: train, convert, pack, unpack


@pytest.mark.parametrize("methods", SUBSETS, ids=lambda m: m or "none")
@pytest.mark.parametrize("name", ENCODERS)
def test_subset(name, methods, folders, batches, tmp_path):
    live, model = compressed(name, methods, folders, batches)
    assert same(live, logits(model, batches[name]))
    for m in model.modules():
        assert not (parametrize.is_parametrized(m) or m._forward_hooks or m._forward_pre_hooks)
    for part, m in encoder_linears(model).items():
        if "mp" in methods:
            assert m.weight_pruned == round(0.6 * m.weight.numel()) <= int((m.weight == 0).sum()), part
    for part, m in (linears(model) | embeddings(model)).items():
        assert hasattr(m, "weight_bits") == ("qat" in methods), part
        if "qat" in methods:
            q = (m.weight / m.weight_scale[:, None]).round()
            assert torch.equal(q * m.weight_scale[:, None], m.weight) and q.abs().max() <= 127, part
    about = pack(model, path := tmp_path / "m.safetensors")
    back = unpack(path)
    assert same(live, logits(back, batches[name]))
    assert about["config"].get("model_type", "bert") == model.config.model_type
    for (key, a), (other, b) in zip(model.named_buffers(), back.named_buffers(), strict=True):
        assert key == other and torch.equal(a, b), key
    assert sizes_of(model, path) == sizes_of(back, path)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_table_and_input_is_rounded_while_it_trains(name, folders, batches):
    "A table or layer whose rounding never happens would differ from its converted self"
    model = load_model(str(folders / name), "full", LABELS)
    methods = prepare(model, build(parse("qat")[0]))
    few_steps(model, methods, batches[name])
    (quantize,) = methods
    for site, observer in quantize.observers.items():
        assert observer.low is not None and observer.high > observer.low and not observer.seen, site
    inputs, outputs, calls = {}, {}, {}
    tables, layers = embeddings(model), linears(model)
    for part, m in layers.items():
        m.register_forward_pre_hook(lambda m, args, part=part: inputs.setdefault(part, []).append(args[0]))
    for part, m in tables.items():
        m.register_forward_hook(lambda m, args, out, part=part: outputs.update({part: out}))
    logits(model, batches[name][:1])
    adapter = adapter_of(model)
    assert {*inputs} == {*layers}, "every linear layer is called"
    assert {*outputs} == {*tables} - adapter.tables_by_weight()
    for part, seen in inputs.items():
        assert len(seen) == adapter.calls(model.config, part), part
        assert all(len(x.unique()) <= 256 for x in seen), part
    for part in adapter.tables_by_weight():
        assert all(len(row.unique()) <= 255 for row in tables[part].weight)
    for part, rows in outputs.items():
        steps = rows.flatten(0, -2)
        scale = steps.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        assert ((steps / scale) - (steps / scale).round()).abs().max() < 1e-3, part


@pytest.mark.parametrize("name", ENCODERS)
def test_options(name, folders, batches, tmp_path):
    "Pruned tables, removed neurons, wide activations, coarse steps"
    for methods in (
        "mp(embeddings=True),qat",
        "mp(neurons=0.5),qat(activations=16)",
        "qat(step=0.8,activations=None)",
    ):
        if "neurons" in methods and name == "modernbert":
            with pytest.raises(ValueError, match="ModernBERT are gated"):
                compressed(name, methods, folders, batches)
            continue
        live, model = compressed(name, methods, folders, batches)
        exact = "neurons" not in methods  # sums in another order
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(live, logits(model, batches[name])))
        assert not exact or same(live, logits(model, batches[name]))
        pack(model, path := tmp_path / "m")
        assert same(logits(model, batches[name]), logits(unpack(path), batches[name]))


# Positions, padding, cuts, sizes


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_nothing_and_the_last_position_is_read(name, folders, tokenizers):
    model, tok = load_model(str(folders / name), "full", LABELS), load_tokenizer(str(folders / name), "full")
    longest = adapter_of(model).positions(model.config)
    assert longest == 64
    texts = ["a", "word " * 200]
    together = predict(model, tok, {"t": texts}, ("t",), max_length=longest)
    alone = [predict(model, tok, {"t": [t]}, ("t",), max_length=longest) for t in texts]
    assert np.allclose(together, np.concatenate(alone), atol=1e-4)
    pairs = {"a": texts, "b": texts[::-1]}
    assert np.isfinite(predict(model, tok, pairs, ("a", "b"), max_length=longest)).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_cut(name, folders, batches, tmp_path):
    model = load_model(str(folders / name), "l1", LABELS)
    whole = load_model(str(folders / name), "full", LABELS)
    assert len(adapter_of(model).layers_of(model)) == 1 == model.config.num_hidden_layers
    assert same(
        [p for n, p in model.named_parameters()],
        [whole.get_parameter(n) for n, _ in model.named_parameters()],
    )
    pack(model, path := tmp_path / "m")
    assert same(logits(model, batches[name]), logits(unpack(path), batches[name]))
    with pytest.raises(ValueError, match="at most l2"):
        load_model(str(folders / name), "l3", LABELS)


def test_layers_of_modernbert_that_stay_keep_their_kind():
    config = config_of(
        "modernbert", num_hidden_layers=6, layer_types=["full_attention", "sliding_attention"] * 3
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    kinds = [layer.attention_type for layer in model.model.layers]
    cut(model, "l4")
    assert model.config.layer_types == [kinds[i] for i in (0, 1, 3, 4)]
    assert [layer.attention_type for layer in model.model.layers] == model.config.layer_types
    windows = [layer.attn.sliding_window is not None for layer in model.model.layers]
    assert windows == [kind == "sliding_attention" for kind in model.config.layer_types]
    back = skeleton(check_config(model.config.to_dict()))
    assert [layer.attention_type for layer in back.model.layers] == model.config.layer_types


@pytest.mark.parametrize("name", ENCODERS)
def test_sizes_by_arithmetic_are_those_counted(name, folders, tmp_path):
    model = load_model(str(folders / name), "full", LABELS)
    adapter = adapter_of(model)
    counted = adapter.parameters(adapter.check(model.config.to_dict()))
    total = counted["embeddings"] + counted["layers"] + counted["others"]
    found = sizes_of(model, tmp_path / "m") if pack(model, tmp_path / "m") else {}
    assert found["parameters"] == model.num_parameters()
    assert found["mb_paper"] == pytest.approx(4 * total / 1e6)
    assert found["mb_paper_noemb"] == pytest.approx(4 * (total - counted["embeddings"]) / 1e6)
    tables = sum(m.weight.numel() for m in embeddings(model).values())
    assert counted["embeddings"] - tables < 1000 and found["mb_file_noemb"] < found["mb_file"]


def test_sizes_of_usual_names():
    known = {
        "roberta-base": 124_055_040,
        "distilbert-base-uncased": 66_362_880,
        "xlm-roberta-base": 277_453_056,
        "google/electra-small-discriminator": 13_483_008,
    }
    for name, parameters in known.items():
        assert sizes(name).encoder_parameters.tolist() == [parameters], name
    with pytest.raises(ValueError, match="sizes: family='roberta-bass'.*did you mean 'roberta-base'"):
        sizes("roberta-bass")


# Runtimes


@pytest.mark.parametrize("runtime", ("onnx", "openvino"))
@pytest.mark.parametrize("methods", ("", "mp,qat"), ids=("float", "int8"))
@pytest.mark.parametrize("name", ENCODERS)
def test_exported(name, methods, runtime, folders, batches, texts, tmp_path):
    _, model = compressed(name, methods, folders, batches)
    tok = load_tokenizer(str(folders / name), "full")
    about = export(model, tmp_path / "e", runtime, tok, data=False, max_length=24)
    reads = adapter_of(model).inputs(model.config)
    assert tuple(about["inputs"]) == graph_inputs(model, tok) == reads
    assert (about["int8_layers"] == len(linears(model))) == bool(methods)
    exported = load_exported(tmp_path / "e", threads=1)
    some = texts[:100]
    ours = predict(model, tok, {"t": some}, ("t",), max_length=24)
    theirs = exported.logits(some)
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.99
    assert abs(ours - theirs).max() < (0.1 if methods else 1e-3) * np.ptp(ours)
    pairs = list(zip(texts[:20], texts[20:40]))
    both = predict(model, tok, dict(enumerate(zip(*pairs))), (0, 1), max_length=24)
    assert (both.argmax(1) == exported.logits(pairs).argmax(1)).mean() >= 0.9
    fixed = load_exported(tmp_path / "e", threads=1, shape=(4, 24))
    assert abs(fixed.logits(some[:6]) - theirs[:6]).max() < 0.1 * np.ptp(ours)


def test_integers_are_computed_as_integers(folders, batches):
    "A traced graph holds int8 weights, and no float copy of them"
    from combcomp.ship.tracing import traced_model

    for name in ("roberta", "modernbert", "deberta_v3"):
        _, model = compressed(name, "qat", folders, batches)
        proto = traced_model(model)
        kinds = [node.op_type for node in proto.graph.node]
        passes = sum(adapter_of(model).calls(model.config, n) for n in linears(model))
        assert kinds.count("QuantizeLinear") == passes
        rounded = sum(m.weight.numel() for m in (linears(model) | embeddings(model)).values())
        by_type = {}
        for t in proto.graph.initializer:
            by_type[t.data_type] = by_type.get(t.data_type, 0) + int(np.prod(t.dims))
        assert by_type[3] == rounded and by_type[1] < rounded / 5  # 3 is int8, 1 is float32


def test_an_earlier_export_has_no_list_of_inputs(folders, batches, tmp_path):
    from combcomp.basics import json_hash
    from combcomp.ship.runtimes import load_about, write_about

    _, model = compressed("bert", "", folders, batches)
    tok = load_tokenizer(str(folders / "bert"), "full")
    export(model, tmp_path / "e", "onnx", tok, data=False, max_length=24)
    about = json.loads((tmp_path / "e" / "export.json").read_text())
    del about["inputs"], about["check"]
    write_about(about, tmp_path / "e")
    assert [*load_about(tmp_path / "e")["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert load_exported(tmp_path / "e").logits(["a tree"]).shape == (1, 3)
    about["inputs"] = ["position_ids"]
    write_about(about, tmp_path / "e")
    with pytest.raises(ValueError, match="inputs=.*position_ids"):
        load_exported(tmp_path / "e")


# Vocabularies


@pytest.mark.parametrize("name", ("electra", "distilbert", "mpnet", "xlm_roberta", "deberta_v3"))
def test_vocabularies_are_trimmed(name, folders, texts, tmp_path):
    model, tok = load_model(str(folders / name), "full", LABELS), load_tokenizer(str(folders / name), "full")
    smaller = Trim(Vocab(rows=200)).change(model, tok, texts)
    assert len(smaller) == 200 == model.config.vocab_size and smaller.pad_token_id == 1
    before = predict(model, smaller, {"t": texts[:8]}, ("t",), max_length=24)
    pack(model, tmp_path / "m", smaller)
    assert np.array_equal(
        before, predict(unpack(tmp_path / "m"), smaller, {"t": texts[:8]}, ("t",), max_length=24)
    )


def test_byte_level_vocabularies_are_refused_before_training(folders, out):
    with pytest.raises(ValueError, match="vocab: tokenizer='BPE"):
        run(
            Run(
                family=str(folders / "roberta"),
                size="l1",
                task="accept",
                methods="vocab(rows=300)",
                limit=64,
                max_length=64,
            ),
            out,
        )
    assert not (out / "runs").exists()


def test_the_padding_of_roberta_must_not_move(folders, texts, tokenizers):
    from combcomp.compress.vocabulary import keep_rows

    model = load_model(str(folders / "xlm_roberta"), "full", LABELS)
    with pytest.raises(ValueError, match="begin after the id of the padding, 1, and it would become 0"):
        keep_rows(model, [1, *range(3, 50)])


# Whole runs


@pytest.mark.parametrize("name, methods", [("roberta", "mp,qat"), ("modernbert", "qat")])
def test_a_run_from_a_file_takes_as_many_lines_as_for_bert(name, methods, folders, texts, tmp_path):
    rows = [f'"{t}",{LABELS[i % 3]}' for i, t in enumerate(texts[:60]) if '"' not in t]
    (tmp_path / "my.csv").write_text("\n".join(["text,label", *rows]))
    cfg = Run(
        family=str(folders / name),
        size="l1",
        task=f"file:{tmp_path/'my.csv'}",
        methods=methods,
        epochs=1,
        max_length=64,
    )
    row = run(cfg, tmp_path / "out", log=QUIET)
    assert row["mb_file"] > 0 and unpack(model_file(cfg, tmp_path / "out")).config.num_hidden_layers == 1
    save_pretrained(cfg, tmp_path / "saved", tmp_path / "out")
    assert "text encoder" in (tmp_path / "saved" / "README.md").read_text()
    loaded = load(tmp_path / "saved")
    assert loaded(texts[:2])[0]["label"] in LABELS


def test_an_encoder_from_the_hub_cache(folders, tmp_path, run_py):

    commit = "0" * 40
    place = tmp_path / "home" / "hub" / "models--someone--deberta"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folders / "deberta_v3", place / "snapshots" / commit)
    code = """
import transformers; transformers.logging.set_verbosity_error()
from combcomp.models.encoders import load_model, load_tokenizer
print(type(load_model('someone/deberta', 'l1', ('a', 'b'))).__name__, len(load_tokenizer('someone/deberta', 'l1')))
"""
    found = run_py(code, HF_HOME=tmp_path / "home", HF_HUB_OFFLINE="1").splitlines()[-1]
    assert found == f"DebertaV2ForSequenceClassification {PIECES}"


# What must fail before training


def broken(folder, target, **changed):
    "A copy of a folder with another configuration"

    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changed))
    return str(target)


@pytest.mark.parametrize(
    "name, changed, options, message",
    [
        ("roberta", dict(max_position_embeddings=40), {}, "max_length=64 is more than the 38 positions"),
        ("mpnet", dict(max_position_embeddings=65), {}, "max_length=64 is more than the 63 positions"),
        (
            "bert",
            dict(vocab_size=500),
            {},
            "the tokenizer has 600 pieces, and the encoder has embeddings for 500",
        ),
        (
            "bert",
            dict(model_type="albert"),
            {},
            "supported types: bert, roberta, camembert, xlm-roberta, electra",
        ),
        ("bert", dict(model_type="secret"), {}, "family='secret' is not allowed"),
        ("bert", dict(auto_map=dict(AutoModel="x.Y")), {}, "brings code of its own"),
        ("electra", dict(num_attention_heads=5), {}, "num_attention_heads"),
        ("modernbert", {}, dict(methods="mp(neurons=0.5)"), "ModernBERT are gated"),
        ("modernbert", dict(layer_types=["full_attention"]), {}, "layer_types"),
        ("deberta_v3", {}, dict(size="l9"), "at most l2"),
    ],
)
def test_bad_configurations_fail_before_training(name, changed, options, message, folders, out, tmp_path):
    family = broken(folders / name, tmp_path / "f", **changed)
    cfg = Run(**dict(family=family, size="full", task="accept", limit=64, max_length=64) | options)
    with pytest.raises(ValueError, match=re.escape(message)):
        run(cfg, out, log=QUIET)
    assert not list((out / "runs").glob("*")) if (out / "runs").exists() else True


@pytest.mark.parametrize("name", ("bert", "electra", "roberta"))
def test_one_token_type_and_pairs(name, folders, texts, tmp_path):
    "A table of one token type is not asked for a second one, neither in training nor in a runtime"
    config = config_of(name, type_vocab_size=1)
    AutoModel.from_config(config).save_pretrained(tmp_path / "f")
    AutoTokenizer.from_pretrained(folders / name).save_pretrained(tmp_path / "f")
    model, tok = load_model(str(tmp_path / "f"), "full", LABELS), load_tokenizer(str(tmp_path / "f"), "full")
    assert tok("a", "b").keys() == {"input_ids", "attention_mask"}
    few_steps(
        model,
        [],
        [dict(tok(texts[:4], texts[4:8], padding=True, truncation=True, max_length=24, return_tensors="pt"))],
    )
    pairs = list(zip(texts[:6], texts[6:12]))
    ours = predict(model, tok, dict(enumerate(zip(*pairs))), (0, 1), max_length=24)
    about = export(model, tmp_path / "e", "onnx", tok, data=False, max_length=24)
    assert about["inputs"] == ["input_ids", "attention_mask"]
    assert np.allclose(ours, load_exported(tmp_path / "e").logits(pairs), atol=1e-3)


HOSTILE = [
    ("bert", dict(hidden_size=10**9)),
    ("roberta", dict(pad_token_id=None)),
    ("roberta", dict(max_position_embeddings=2)),
    ("electra", dict(embedding_size=10**8)),
    ("distilbert", dict(dim=-1)),
    ("distilbert", dict(activation="os.system")),
    ("mpnet", dict(relative_attention_num_buckets=1)),
    ("modernbert", dict(layer_types=["full_attention"] * 10**6)),
    ("modernbert", dict(layer_types="xx")),
    ("modernbert", dict(rope_parameters=dict(full_attention=dict(rope_type="dynamic")))),
    ("modernbert", dict(rope_parameters=None)),
    ("modernbert", dict(norm_bias="yes")),
    ("deberta_v3", dict(pos_att_type=["x"])),
    ("deberta_v3", dict(position_buckets=10**9)),
    ("deberta_v2", dict(conv_kernel_size=2)),
    ("bert", dict(model_type="albert")),
    ("bert", dict(model_type=["bert"])),
    ("bert", dict(model_type="roberta")),
]


@pytest.mark.parametrize("name, changed", HOSTILE, ids=lambda v: v if isinstance(v, str) else next(iter(v)))
def test_hostile_headers(name, changed, folders, tmp_path):
    "A header whose checksum is right and whose configuration is not"
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from combcomp.ship.packed_file import write_header

    pack(load_model(str(folders / name), "l1", LABELS), path := tmp_path / "m")
    with safe_open(path, "numpy") as f:
        header, arrays = json.loads(f.metadata()["combcomp"]), {k: f.get_tensor(k) for k in f.keys()}
    header.pop("check")
    header["config"] |= changed
    save_file(arrays, path, metadata=write_header(header))
    for read in (unpack, inspect):
        with pytest.raises(CorruptFile):
            read(path)


def test_shared_tensors_are_refused(folders, tmp_path):
    model = load_model(str(folders / "distilbert"), "full", LABELS)
    first, second = adapter_of(model).layers_of(model)
    second.ffn.lin1.weight = first.ffn.lin1.weight
    with pytest.raises(ValueError, match="two tensors of the model are one"):
        pack(model, tmp_path / "m")


# One place for model types

OWN = {  # modules that may name an architecture, and why
    "models.adapters": "the registry",
    "models.e5": "writes a BERT",
    "models.miniatures": "writes BERTs",
    "models.pretraining": "trains BERTs",
    "models.sizes": "named families and the usual names",
    "models.encoders": "the family bert",
    "spec": "named families",
    "study.plan": "named families",
    "study.schedule": "named families",
    "study.cluster": "named families",
    "study.claims": "the paper's largest model",
    "share.model_card": "named families",
    "cli": "named families",
    "ship.runtimes": "the graph of a BERT that is written by hand",
}
KNOWN = {
    "compress.training": {"bert"},  # the adapter of an example
    "ship.packed_file": {"bert"},  # a header without a type
    "ship.folder": {"BertNormalizer", "BertTokenizer"},  # of a tokenizer, which other encoders have too
}
NAMES = "bert|electra|mpnet"


def naming(source):
    "Names and strings of a source, without docstrings, that name an architecture"
    tree = ast.parse(source)
    for n in ast.walk(tree):
        if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(n):
            n.body[0].value.value = ""
    for n in ast.walk(tree):
        found = getattr(n, "attr", None) or getattr(n, "id", None) or getattr(n, "value", None)
        if isinstance(found, str) and re.search(NAMES, found, re.IGNORECASE):
            yield found


@pytest.mark.parametrize("path", [p for p in MODULES if module_of(p) not in OWN], ids=module_of)
def test_architectures_are_named_in_one_place(path):
    found = {*naming(path.read_text(encoding="utf-8"))}
    assert found == KNOWN.get(module_of(path), set())


def test_names_of_architectures_are_noticed():
    source = (
        'def f(m):\n    "Of a BERT"\n    return m.roberta.x, m.config.model_type == "electra", "albert", Bert'
    )
    assert {*naming(source)} == {"roberta", "electra", "albert", "Bert"}


def test_every_adapter_is_tested():
    assert {config_of(name).model_type for name in ENCODERS} | {"camembert"} == {*ADAPTERS}
