"What the notebook of packed files cannot show: fuzzing, forged headers, failing disks, other processes"

import copy, json, os, random, tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save
from transformers import BertConfig, BertForSequenceClassification

from combcomp.compress.methods import convert
from combcomp.compress.pruning import Prune
from combcomp.compress.quantization import QLinear, Quantize
from combcomp.compress.vocabulary import keep_rows
from combcomp.models.encoders import load_model
from combcomp.ship import packed_file as P
from combcomp.ship.packed_file import CorruptFile, inspect, pack, unpack
from combcomp.ship.model_size import sizes_of
from combcomp.spec import parse

TINY = dict(
    vocab_size=600,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)
SMALL = dict(
    vocab_size=500,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=64,
    num_labels=3,
)


def bert(seed=0, **config):
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**config)).eval()


def compressed(model, bits=32, sparsity=0.0):
    "A copy in the form that prune and quantize leave behind"
    model = copy.deepcopy(model)
    model.config.combcomp = {"methods": "kd,mp,qat"}
    for m in model.modules():
        if not isinstance(m, (torch.nn.Linear, torch.nn.Embedding)):
            continue
        w = m.weight.data
        if sparsity:
            w[w.abs() <= w.abs().flatten().kthvalue(max(1, int(sparsity * w.numel()))).values] = 0
            m.weight_pruned = int((w == 0).sum())
        if bits < 32:
            m.register_buffer(
                "weight_scale", w.abs().amax(1).clamp(min=1e-8) / (2 ** (bits - 1) - 1), persistent=False
            )
            m.weight_bits = bits
            w.copy_((w / m.weight_scale[:, None]).round() * m.weight_scale[:, None])
    return model


def logits(model):
    ids = torch.randint(0, model.config.vocab_size, (3, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def assert_same(a, b):
    assert torch.equal(logits(a), logits(b))
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    for (name, m), (_, n) in zip(a.named_modules(), b.named_modules()):
        for k in ("weight_bits", "weight_pruned", "input_bits"):
            assert getattr(m, k, None) == getattr(n, k, None), (name, k)
        for k in ("weight_scale", "input_scale", "input_zero"):
            assert hasattr(m, k) == hasattr(n, k) and (
                not hasattr(m, k) or torch.equal(getattr(m, k), getattr(n, k))
            ), (name, k)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("bits", [32, 16, 12, 8, 4, 2])
def test_round_trip(tmp_path, bits, sparsity):
    model = compressed(bert(**SMALL), bits, sparsity)
    report = pack(model, tmp_path / "a.safetensors", tokenizer="some/tokenizer", info={"task": "accept"})
    back = unpack(tmp_path / "a.safetensors")
    assert_same(model, back)
    assert back.config.combcomp == {"methods": "kd,mp,qat"} and not back.training
    assert back.config.id2label == model.config.id2label and all(p.requires_grad for p in back.parameters())
    pack(back, tmp_path / "b.safetensors", tokenizer="some/tokenizer", info={"task": "accept"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert report == inspect(tmp_path / "a.safetensors") and report["bytes"] == os.path.getsize(
        tmp_path / "a.safetensors"
    )
    assert report["tokenizer"] == "some/tokenizer" and report["info"] == {"task": "accept"}
    assert sizes_of(back, tmp_path / "a.safetensors") == sizes_of(model, tmp_path / "a.safetensors")


def test_plain_model_without_attributes(tmp_path):
    model = bert(**SMALL)
    model.config.id2label, model.config.label2id = {0: "no", 1: "yes", 2: "größer"}, {
        "no": 0,
        "yes": 1,
        "größer": 2,
    }
    pack(model, tmp_path / "m")
    back = unpack(tmp_path / "m")
    assert_same(model, back)
    assert back.config.label2id == model.config.label2id and not hasattr(back.config, "combcomp")


def test_odd_values(tmp_path):
    "NaN, infinities, negative zero, constants and halves survive"
    model = bert(**TINY)
    w = model.bert.pooler.dense.weight.data
    w[0, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    model.classifier.weight.data.fill_(0.5)
    model.bert.embeddings.word_embeddings.weight.data.zero_()
    model.bert.encoder.layer[0].output.dense.weight.data[:, 3:] = -0.0
    pack(model, tmp_path / "m")
    for (k, a), b in zip(model.state_dict().items(), unpack(tmp_path / "m").state_dict().values()):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32)), k
    assert inspect(tmp_path / "m")["tensors"]["classifier.weight"]["form"] == "half"


def test_versions(tmp_path):
    "Floats that are stored as they are make a file of the first version; all versions give the same model"
    models = bert(**TINY), compressed(bert(**TINY), 32, 0.5), compressed(bert(**TINY), 8)
    for model, version, form in zip(models, (3, 3, 1), ("split", "mask+split", "raw")):
        about = pack(model, tmp_path / "coded")
        plain = pack(model, tmp_path / "plain", split=False)
        assert (about["version"], plain["version"]) == (version, 1)
        assert about["tensors"][WORD]["form"] == form
        assert plain["tensors"][WORD]["form"] == form.replace("split", "raw")
        assert about["bytes"] < plain["bytes"] or version == 1
        assert_same(unpack(tmp_path / "coded"), model)
        assert_same(unpack(tmp_path / "plain"), model)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_floats_are_smaller_than_under_zstd(tmp_path, sparsity, half):
    "Real weights: MiniLM's first layer and 500 pieces"
    model = load_model("minilm", "l1", ("no", "yes")).eval()
    keep_rows(model, np.arange(500))
    if half:
        for p in model.parameters():
            p.data = p.data.half().float()
    model = compressed(model, 32, sparsity)
    sizes, report = P.other_sizes(model), pack(model, tmp_path / "m")
    assert report["bytes"] == round(sizes["mb_coded"] * 1e6)
    assert sizes["mb_coded"] < 0.99 * sizes["mb_zstd"] < sizes["mb_plain"]
    assert_same(unpack(tmp_path / "m"), model)


def test_training_goes_on(tmp_path):
    pack(bert(**TINY), tmp_path / "m")
    model = unpack(tmp_path / "m").train()
    model(torch.randint(0, 600, (2, 5)), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_rounded_inputs(tmp_path):
    model = compressed(bert(**SMALL), 8)
    for i, layer in enumerate(model.bert.encoder.layer):
        layer.output.dense = QLinear.wrap(layer.output.dense, 0.01 * (i + 1), 17, 8)
        layer.attention.self.query = QLinear.wrap(layer.attention.self.query, 0.0123, 2000, 16)
    pack(model, tmp_path / "m")
    back = unpack(tmp_path / "m")
    assert_same(model, back)
    assert type(back.bert.encoder.layer[1].output.dense) is QLinear
    assert sizes_of(back)["mb_packed"] == sizes_of(compressed(bert(**SMALL), 8))["mb_packed"] + 4 * 8 / 1e6


@pytest.mark.parametrize("methods", ["qat", "mp,qat", "mp", "ptq"])
def test_converted_models(tmp_path, methods):
    "What the methods leave behind is what `pack` expects"
    model = bert(**SMALL).train()
    made = [Prune(s) if type(s).__name__ == "MP" else Quantize(s) for s in parse(methods)[0]]
    for m in made:
        m.prepare(model)
    for progress in (0.5, 1.0):
        model(torch.randint(0, 500, (2, 9)))
        for m in made:
            m.step(progress)
    convert(model.eval(), made)
    pack(model, tmp_path / "m")
    assert_same(model, unpack(tmp_path / "m"))


def test_one_scale_for_all_rows(tmp_path):
    "Steps make one scale a tensor, and the file holds one"
    model = bert(**SMALL).train()
    quantize = Quantize(parse("qat(step=0.8)")[0][0])
    quantize.prepare(model)
    model(torch.randint(0, 500, (2, 9)))
    convert(model.eval(), [quantize])
    about = pack(model, tmp_path / "m")
    assert about["version"] == 3
    rounded = {name: r for name, r in about["tensors"].items() if r["bits"] < 32}
    assert rounded and all(r["scales"] == 1 for r in rounded.values())
    arrays = load_file(tmp_path / "m")
    assert all(arrays[name + ".scale"].shape == (1,) for name in rounded)
    back = unpack(tmp_path / "m")
    assert_same(model, back)
    assert back.bert.pooler.dense.weight_scale.shape == (64,)
    rows = sum(r["shape"][0] for r in rounded.values())
    per_row = compressed(bert(**SMALL), 8)
    weights = sum(np.prod(r["shape"]) * (8 - r["bits"]) / 8 for r in rounded.values())
    layers = sum(m.input_bits == 8 for m in back.modules() if hasattr(m, "input_bits"))
    assert sizes_of(back)["mb_packed"] * 1e6 == pytest.approx(
        sizes_of(per_row)["mb_packed"] * 1e6 - weights - 4 * (rows - len(rounded)) + 8 * layers
    )


def test_same_bytes_in_another_process(tmp_path, run_py):
    "Of another hash seed than this one"
    code = (
        "import sys; sys.path[:0] = {path!r}; from test_ship_packed_file import *; print(hash('combcomp')); "
        "pack(compressed(bert(**TINY), 8, 0.5), {out!r})"
    )
    path, there = [os.path.dirname(__file__), os.getcwd()], tmp_path / "there"
    said = run_py(code.format(path=path, out=str(there)), PYTHONHASHSEED=1)
    assert said.split()[-1] != str(hash("combcomp"))
    pack(compressed(bert(**TINY), 8, 0.5), tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == there.read_bytes()


def test_any_reader_opens_it(tmp_path):
    model = compressed(bert(**TINY), 8)
    model.bert.pooler.dense.bias.data.normal_()
    pack(model, tmp_path / "m.safetensors")
    arrays = load_file(tmp_path / "m.safetensors")
    assert (arrays["bert.pooler.dense.bias"] == model.bert.pooler.dense.bias.detach().numpy()).all()
    assert (
        b"tmp" not in (tmp_path / "m.safetensors").read_bytes()
        and str(tmp_path).encode() not in (tmp_path / "m.safetensors").read_bytes()
    )


# ---- damage


@pytest.fixture(scope="module", params=[(8, 0.5), (4, 0.0), (32, 0.5), (32, 0.0), (16, 0.5)], ids=str)
def small_file(request, tmp_path_factory):
    model = compressed(bert(**TINY), *request.param)
    path = tmp_path_factory.mktemp("small") / "m.safetensors"
    pack(model, path)
    return model, path.read_bytes()


def rejects_or_equals(path, data, model):
    "True if refused; fails unless the result is then the very same model"
    path.write_bytes(data)
    try:
        back = unpack(path)
    except CorruptFile as e:
        assert "m.safetensors" in str(e) or "bad" in str(e)
        return True
    assert_same(model, back)
    assert back.config.combcomp == model.config.combcomp
    return False


def test_truncation(small_file, tmp_path):
    model, data = small_file
    head = 8 + int.from_bytes(data[:8], "little")
    cuts = {
        *range(0, 64),
        *range(head - 8, head + 64),
        *range(0, len(data), 97),
        *range(len(data) - 64, len(data)),
    }
    for n in sorted(cuts):
        assert rejects_or_equals(tmp_path / "bad", data[:n], model), n
    assert rejects_or_equals(tmp_path / "bad", data + b"\0", model)


def test_bit_flips(small_file, tmp_path):
    model, data = small_file
    rng, head, passed = random.Random(0), 8 + int.from_bytes(data[:8], "little"), 0
    for i in range(500):
        bad = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 4))):
            bad[rng.randrange(head) if i % 2 else rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        passed += not rejects_or_equals(tmp_path / "bad", bytes(bad), model)
    assert passed < 50


EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(("flip", "set", "insert", "cut")),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def edited(data, edits):
    "Bytes after edits at relative positions"
    for where, kind, new in edits:
        i = int(where * len(data))
        if kind == "flip":
            data = data[:i] + bytes([data[i] ^ new[0]]) + data[i + 1 :]
        else:
            data = (
                data[:i] + (b"" if kind == "cut" else new) + data[i + (0 if kind == "insert" else len(new)) :]
            )
    return data


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, in_header=st.booleans())
def test_fuzz(small_file, tmp_path, edits, in_header):
    model, data = small_file
    head = 8 + int.from_bytes(data[:8], "little")
    bad = edited(data[:head], edits) + data[head:] if in_header else edited(data, edits)
    rejects_or_equals(tmp_path / "bad", bad, model)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_bit_and_every_length(small_file, tmp_path):
    model, data = small_file
    for n in range(len(data)):
        assert rejects_or_equals(tmp_path / "bad", data[:n], model), n
    noticed = sum(
        rejects_or_equals(tmp_path / "bad", data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :], model)
        for i in range(len(data))
        for bit in range(8)
    )
    assert noticed > 0.99 * 8 * len(data)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_ten_thousand_bits_of_a_large_file(tmp_path):
    "In a file of millions of weights; half of the bits in its header"
    model, rng = compressed(load_model("minilm", "l1", ("no", "yes")).eval(), 8, 0.5), random.Random(0)
    pack(model, tmp_path / "m.safetensors")
    data, noticed = (tmp_path / "m.safetensors").read_bytes(), 0
    head = 8 + int.from_bytes(data[:8], "little")
    for i in range(10_000):
        at, bit = rng.randrange(head if i % 2 else len(data)), rng.randrange(8)
        noticed += rejects_or_equals(
            tmp_path / "bad", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], model
        )
    assert noticed > 9_900


def test_spliced_bytes(small_file, tmp_path):
    model, data = small_file
    rng = random.Random(1)
    for _ in range(100):
        a, b, n = (rng.randrange(len(data)) for _ in range(3))
        rejects_or_equals(tmp_path / "bad", data[:a] + data[b : b + n % 200] + data[a:], model)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"\x80\x04\x95",
        b"PK\x03\x04" * 20,
        (2**40).to_bytes(8, "little") + b"{}",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        save({"x": np.zeros(3, np.float32)}),
        save({"x": np.zeros(3, np.float32)}, {"combcomp": "[" * 50_000}),
        save({}, {"combcomp": '{"format":"combcomp","version":1e999}'}),
        save({}, {"combcomp": "7"}),
        save({}, {"combcomp": "null"}),
    ],
    ids=lambda d: repr(d[:12]),
)
def test_not_our_format(tmp_path, data):
    (tmp_path / "bad").write_bytes(data)
    for read in (unpack, inspect):
        with pytest.raises(CorruptFile, match="bad: "):
            read(tmp_path / "bad")


# ---- forged: a valid container with a fitting checksum, whose header lies


def forge(path, change, arrays=None):
    with safe_open(path, framework="numpy") as f:
        header = json.loads(f.metadata()["combcomp"])
        arrays = {k: f.get_tensor(k) for k in f.keys()} if arrays is None else arrays
    header.pop("check")
    change(header)
    path.write_bytes(save(arrays, P.write_header(header)))


WORD, POOL = "bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight"
LIES = {
    "newer": (lambda h: h.update(version=4), "version 4"),
    "other format": (lambda h: h.update(format="pickle"), "no readable header"),
    "hidden": (lambda h: h["config"].update(hidden_size=2**40), "hidden_size"),
    "layers": (lambda h: h["config"].update(num_hidden_layers=10**6), "num_hidden_layers"),
    "more layers": (lambda h: h["config"].update(num_hidden_layers=48), "not those of the configuration"),
    "vocabulary": (lambda h: h["config"].update(vocab_size=10**6), "shape"),
    "vocabulary and shape": (
        lambda h: (h["config"].update(vocab_size=10**6), h["tensors"][WORD].update(shape=[10**6, 16])),
        "more weights than|belong",
    ),
    "heads": (lambda h: h["config"].update(num_attention_heads=5), "divisor"),
    "padding": (lambda h: h["config"].update(pad_token_id=600), "pad_token_id"),
    "activation": (lambda h: h["config"].update(hidden_act="system"), "hidden_act"),
    "activation type": (lambda h: h["config"].update(hidden_act=["gelu"]), "hidden_act"),
    "labels": (lambda h: h["config"].update(id2label={"0": "a", "7": "b"}), "id2label"),
    "no config": (lambda h: h.pop("config"), "config"),
    "a bool": (lambda h: h["config"].update(hidden_size=True), "hidden_size"),
    "combcomp": (lambda h: h["config"].update(combcomp=3), "combcomp"),
    "form": (lambda h: h["tensors"][POOL].update(form="pickle"), "unknown form"),
    "mask of mask": (lambda h: h["tensors"][POOL].update(form="mask+mask+ans"), "unknown form"),
    "form type": (lambda h: h["tensors"][POOL].update(form=3), "removeprefix|startswith"),
    "bits": (lambda h: h["tensors"][POOL].update(bits=17), "bits"),
    "fewer bits": (lambda h: h["tensors"][POOL].update(bits=2), "checksum"),
    "more bits": (lambda h: h["tensors"][POOL].update(bits=16), "not those of the header"),
    "float": (lambda h: h["tensors"][POOL].update(bits=32), "unknown form"),
    "checksum": (lambda h: h["tensors"][POOL].update(check="00000000"), "checksum"),
    "pruned": (lambda h: h["tensors"][POOL].update(pruned=10**9), "pruned"),
    "one scale": (lambda h: h["tensors"][POOL].update(scales=1), "16 float32 where 1 float32 belong"),
    "two scales": (lambda h: h["tensors"][POOL].update(scales=2), "scales='2' is not allowed"),
    "a bool of scales": (lambda h: h["tensors"][POOL].update(scales=True), "scales='True' is not allowed"),
    "rounded bias": (lambda h: h["tensors"]["bert.pooler.dense.bias"].update(bits=8), "not a matrix"),
    "shape": (lambda h: h["tensors"][POOL].update(shape=[2**31, 2**31]), "shape"),
    "tensor": (lambda h: h["tensors"].pop(POOL), "not those of the configuration"),
    "inputs of nothing": (
        lambda h: h.update(inputs={"bert.nothing": dict(scale=1.0, zero=0, bits=8)}),
        "nothing",
    ),
    "inputs of a norm": (
        lambda h: h.update(inputs={"bert.embeddings.LayerNorm": dict(scale=1.0, zero=0, bits=8)}),
        "not a linear layer",
    ),
    "zero point": (
        lambda h: h.update(inputs={"bert.pooler.dense": dict(scale=1.0, zero=256, bits=8)}),
        "zero",
    ),
    "scale": (lambda h: h.update(inputs={"bert.pooler.dense": dict(scale=0.0, zero=0, bits=8)}), "scale"),
}


@pytest.mark.parametrize("lie", LIES)
def test_forged_header(tmp_path, lie):
    path, (change, message) = tmp_path / "bad", LIES[lie]
    pack(compressed(bert(**TINY), 4), path)
    forge(path, lambda h: None)
    unpack(path)
    forge(path, change)
    with pytest.raises(CorruptFile, match=message):
        unpack(path)


FLOAT_LIES = {
    "half": (lambda h, a: h["tensors"][WORD].update(form="split-half"), "where 9600 uint8 belong"),
    "mask": (lambda h, a: h["tensors"][WORD].update(form="mask+split"), "not those of the header"),
    "raw": (lambda h, a: h["tensors"][WORD].update(form="raw"), "not those of the header"),
    "other form": (lambda h, a: h["tensors"][WORD].update(form="split-"), "unknown form"),
    "rounded": (lambda h, a: h["tensors"][WORD].update(bits=8), "unknown form"),
    "fewer": (lambda h, a: a.update({WORD + ".rest": a[WORD + ".rest"][:-1]}), "where 28800 uint8 belong"),
    "more": (lambda h, a: a.update({WORD + ".rest": np.zeros(28803, np.uint8)}), "where 28800 uint8 belong"),
    "wider": (lambda h, a: a.update({WORD + ".rest": np.zeros(28800, np.uint16)}), "28800 uint16 where"),
    "exponents": (lambda h, a: a[WORD + ".top"].fill(7), "checksum"),
    "no exponents": (lambda h, a: a.update({WORD + ".top": np.zeros(0, np.uint32)}), "checksum"),
    "counts": (lambda h, a: a[WORD + ".top.counts"].fill(1), "histogram"),
    "many counts": (lambda h, a: a.update({WORD + ".top.counts": np.full(512, 128, np.uint16)}), "histogram"),
    "one count": (lambda h, a: a.update({WORD + ".top.counts": np.zeros(1, np.uint16)}), "histogram"),
}


@pytest.mark.parametrize("lie", FLOAT_LIES)
def test_forged_floats(tmp_path, lie):
    path, (change, message) = tmp_path / "bad", FLOAT_LIES[lie]
    tensors = pack(bert(**TINY), path)["tensors"]
    assert tensors[WORD]["form"] == "split" and tensors[POOL]["form"] == "raw"
    with safe_open(path, framework="numpy") as f:
        arrays = {k: f.get_tensor(k).copy() for k in f.keys()}
    forge(path, lambda h: change(h, arrays), arrays)
    with pytest.raises(CorruptFile, match=message):
        unpack(path)


def test_integers_beyond_their_bits(tmp_path):
    pack(compressed(bert(**TINY), 8), tmp_path / "bad")
    assert inspect(tmp_path / "bad")["tensors"][POOL]["form"] == "raw"
    forge(tmp_path / "bad", lambda h: h["tensors"][POOL].update(bits=4))
    with pytest.raises(CorruptFile, match="more than 4 bits"):
        unpack(tmp_path / "bad")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_scales_are_finite_and_not_negative(value, tmp_path):
    "With every checksum made anew"
    pack(compressed(bert(**TINY), 8), path := tmp_path / "bad")
    with safe_open(path, framework="numpy") as f:
        arrays = {k: f.get_tensor(k) for k in f.keys()}
    arrays[POOL + ".scale"][0] = value
    check = P.checksum(arrays[POOL].reshape(16, 16), arrays[POOL + ".scale"])
    forge(path, lambda h: h["tensors"][POOL].update(check=check), arrays)
    with pytest.raises(CorruptFile, match="negative or not finite"):
        unpack(path)


def test_what_a_file_takes_in_memory_is_bounded(tmp_path):
    "A small file of a large model of zeros; the default is enough for BERT-LARGE"
    assert P.MAX_BYTES > 4 * 335_143_938
    large = bert(**TINY | dict(vocab_size=30_000))
    with torch.no_grad():
        large.bert.embeddings.word_embeddings.weight.zero_()
    pack(compressed(large, 8), path := tmp_path / "m")
    weights = sum(v.numel() for v in large.state_dict().values())
    with pytest.raises(P.TooLarge, match=f"{weights:,} weights .*max_bytes={4*weights}"):
        unpack(path, max_bytes=4 * weights - 1)
    assert_same(unpack(path, max_bytes=4 * weights), unpack(path))


def test_configuration_cannot_name_code(tmp_path):
    "Fields that are not ours never reach transformers"
    pack(bert(**TINY), tmp_path / "m")
    evil = dict(
        auto_map={"AutoModel": "x--y.Z"},
        attn_implementation="some/kernel",
        quantization_config={"quant_method": "bitsandbytes_4bit"},
        is_decoder=True,
    )
    forge(tmp_path / "m", lambda h: h["config"].update(evil))
    config = unpack(tmp_path / "m").config
    assert (
        not config.is_decoder
        and not hasattr(config, "auto_map")
        and config._attn_implementation in ("sdpa", "eager")
    )


def test_huge_claims_take_no_memory(tmp_path):
    "Ten kilobytes that would decode to a billion weights are refused before they do"
    import resource

    pack(compressed(bert(**TINY), 4), path := tmp_path / "bad")

    def claim(h):
        h["config"].update(vocab_size=10**6, hidden_size=1024)
        for k, v in P.skeleton(h["config"]).state_dict().items():
            h["tensors"][k]["shape"] = list(v.shape)

    forge(path, claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(CorruptFile, match="more weights than"):
        unpack(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB on Linux


# ---- writing


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    model, path = bert(**TINY), tmp_path / "m.safetensors"
    pack(model, path)
    old = path.read_bytes()
    for broken in ("replace", "fsync"):
        with monkeypatch.context() as m:

            def fail(*_):
                raise OSError("no space left")

            m.setattr(os, broken, fail)
            with pytest.raises(OSError, match="no space"):
                pack(compressed(model, 8), path)
        assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"] and path.read_bytes() == old
    with pytest.raises(FileNotFoundError):
        pack(model, tmp_path / "missing" / "m")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    (folder := tmp_path / "fixed").mkdir()
    folder.chmod(0o555)
    with pytest.raises(PermissionError):
        pack(bert(**TINY), folder / "m")
    assert not list(folder.iterdir())


def test_never_a_partial_file(tmp_path, monkeypatch):
    "At the moment of renaming the passing file is complete"
    seen, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(len(unpack(a).state_dict())), real(a, b))[1])
    pack(bert(**TINY), tmp_path / "m")
    assert seen == [len(bert(**TINY).state_dict())]


def test_refuses_what_it_could_not_read_back(tmp_path):
    model = compressed(bert(**TINY), 8)
    broken = copy.deepcopy(model)
    broken.bert.pooler.dense.weight.data += 1e-3
    with pytest.raises(ValueError, match="pooler.dense.weight: the weight is not integers of 8 bits"):
        pack(broken, tmp_path / "m")
    training = bert(**TINY)
    torch.nn.utils.parametrize.register_parametrization(
        training.bert.pooler.dense, "weight", torch.nn.Identity()
    )
    with pytest.raises(ValueError, match="convert the model first"):
        pack(training, tmp_path / "m")
    with pytest.raises(ValueError, match="decoder"):
        pack(bert(is_decoder=True, **TINY), tmp_path / "m")
    with pytest.raises(ValueError, match="no BertForSequenceClassification"):
        pack(torch.nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(TypeError):
        pack(model, tmp_path / "m", info={"x": object()})
    assert not list(tmp_path.iterdir())


def test_unpack_leaves_the_random_state_alone(tmp_path):
    pack(bert(**TINY), tmp_path / "m")
    before = torch.get_rng_state()
    unpack(tmp_path / "m")
    assert torch.equal(before, torch.get_rng_state())


def test_missing_file(tmp_path):
    for read in (unpack, inspect):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing")
