"Every subset on both runtimes: the predictions of the converted model, integers inside, any shape, and errors that say what is wrong"

import copy, json, os, shutil

import numpy as np, pytest, torch, transformers

from conftest import tiny_family
from combcomp import bench, export, load_exported, pack, unpack
from combcomp.spec import SUBSETS, parse
from combcomp.compress.methods import convert, linears
from combcomp.models.encoders import load_model, load_tokenizer, predict
from combcomp.compress.quantization import QLinear, Quantize
from combcomp.ship.latency import tokens
from combcomp.data.tasks import TASKS
from combcomp.data.loading import load_task
from combcomp.compress.training import compress, encode

onnx, ort, ov = (
    pytest.importorskip("onnx"),
    pytest.importorskip("onnxruntime"),
    pytest.importorskip("openvino"),
)
from combcomp.ship import runtimes
from combcomp.basics import file_hashes
from combcomp.ship.folder import LINKED, REFERENCES
from combcomp.ship.runtimes import (
    FILES,
    INPUTS,
    ParityError,
    UNCHECKED,
    VERSION,
    load_about,
    onnx_model,
    pad_batch,
    runs_in_int8,
    write_about,
)
from combcomp.ship.verification import verify

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
QUIET = lambda *a, **k: None
RUNTIMES = tuple(FILES)
TINY = tiny_family()


@pytest.fixture(scope="module")
def tok():
    "The tokenizer of both families"
    return load_tokenizer(TINY, "l1")


@pytest.fixture(scope="module")
def trained(cache, tok):
    "(methods, task name, family) -> (converted model of one layer, 300 validation examples), trained once"
    made = {}

    def get(methods, name="accept", family=TINY):
        if (methods, name, family) in made:
            return made[methods, name, family]
        task, model = TASKS[name], load_model(family, "l1", TASKS[name].labels)
        data = load_task(name, limit=96, cache=cache)
        logits = np.random.default_rng(0).normal(size=(96, len(task.labels or (0,)))).tolist()
        train = encode(data["train"].add_column("teacher", logits), tok, task.texts)
        compress(model, tok, train, parse(methods), log=QUIET, epochs=2, batch_size=16, lr=3e-4)
        made[methods, name, family] = model, data["validation"].select(range(300))
        return made[methods, name, family]

    return get


def layer_types(folder):
    "(kind, type it runs in) of each layer of a compiled OpenVINO model"
    compiled = ov.Core().compile_model(
        str(folder / FILES["openvino"]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    text = lambda v: v.astype(str) if hasattr(v, "astype") else v
    return [
        (text(i["layerType"]), text(i["runtimePrecision"]))
        for i in (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
    ]


def fused(folder, tmp_path):
    "Kinds of operators of the graph that ONNX Runtime has made"
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]


def largest(model):
    "Megabytes of an int8 graph, at most: a byte a parameter, a scale of four bytes a piece, and the operators"
    return (model.num_parameters() + 4 * model.config.vocab_size) / 1e6 + 0.06


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "methods, family",
    [*((m, TINY) for m in SUBSETS), ("kd,mp,qat", "minilm")],
    ids=[*(m or "none" for m in SUBSETS), "kd,mp,qat of minilm"],
)
def test_subset(methods, family, runtime, trained, tok, tmp_path):
    model, val = trained(methods, family=family)
    about = export(
        model, tmp_path / "m", runtime, tokenizer=tok, task="accept", data=val, within=0.7
    )  # 2 of 300 examples
    baked, logits = predict(model, tok, val, ("sentence",)), load_exported(tmp_path / "m", threads=1).logits(
        val["sentence"]
    )
    assert (baked.argmax(1) == logits.argmax(1)).mean() == about["parity"]["equal"] >= 0.99
    if "qat" not in methods:
        export(model, tmp_path / "exact", runtime, tokenizer=tok, data=False, precision="f32")
        assert (
            about["int8_layers"] == 0
            and abs(baked - load_exported(tmp_path / "exact").logits(val["sentence"])).max() < 1e-3
        )
        return
    assert (
        about["int8_layers"] == 8
        and about["mb_onnx"] < largest(model)
        and about["mb"] < about["mb_onnx"] + 0.14  # the graph in XML
    )
    if runtime == "onnx":
        kinds = fused(tmp_path / "m", tmp_path)
        assert kinds.count("MatMulIntegerToFloat") == 7  # key and value are one
        assert not {"Gemm", "MatMul"} & {*kinds}
    else:
        assert [t in ("u8", "i8") for kind, t in layer_types(tmp_path / "m") if kind == "FullyConnected"] == [
            True
        ] * 8


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["hypernym", "glosssim"])
def test_pairs_and_regression(name, runtime, trained, tok, tmp_path):
    model, val = trained("qat", name)
    about = export(model, tmp_path / "m", runtime, tokenizer=tok, task=name, data=val, within=0.7)
    pairs = list(zip(*(val[t] for t in TASKS[name].texts)))
    answers = load_exported(tmp_path / "m")(pairs)
    if name == "glosssim":
        assert about["labels"] is None and all(
            a["label"] is None and isinstance(a["score"], float) for a in answers
        )
    else:
        assert {a["label"] for a in answers} <= {"false", "true"} and all(
            0.5 <= a["score"] <= 1 for a in answers
        )
    assert about["parity"]["examples"] == len(answers) == 300


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_any_batch_and_length(runtime, trained, tok, tmp_path):
    model, val = trained("")
    export(model, tmp_path / "m", runtime, tokenizer=tok, data=False, max_length=40)
    m = load_exported(tmp_path / "m", threads=1)
    texts = ["a", "", "word " * 300, *val["sentence"][:14]]
    enc = [tok(t, truncation=True, max_length=40, return_tensors="pt") for t in texts]
    with torch.inference_mode():
        want = np.concatenate([model(**e).logits.numpy() for e in enc])
    for size in (1, 5, 32):
        assert np.allclose(m.logits(texts, batch_size=size), want, atol=1e-3)
    assert m.logits([]).shape == (0, 2) and m([]) == [] and m("a")[0]["label"] in TASKS["accept"].labels


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "methods",
    [
        "qat(bits=4)",
        "qat(bits=8, activations=None)",
        "qat(bits=16, activations=16, embeddings=16)",
        "qat(bits=16, activations=8, embeddings=8)",
    ],
)
def test_other_bits(methods, runtime, tok, tmp_path):
    model = load_model("minilm", "l1", TASKS["accept"].labels)
    quantize = Quantize(parse(methods)[0][0])
    quantize.prepare(model)
    texts = ["the dog sat", "it sat on the small mat near me"] * 4
    batch = tok(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        model.train()(**batch)
    convert(model, [quantize])
    with torch.no_grad():
        want = model(**batch).logits.numpy()
    about = export(model, tmp_path / "m", runtime, tokenizer=tok, data=False)
    assert (
        about["int8_layers"] == (8 if methods == "qat(bits=4)" else 0)
        and about["mb_onnx"] < (0.27 if "bits=16" not in methods else 0.52) * model.num_parameters() * 4 / 1e6
    )
    assert about["mb"] < 1.02 * about["mb_onnx"]
    assert abs(load_exported(tmp_path / "m").logits(texts) - want).max() < (
        0.03 if "8" in methods or "4" in methods else 2e-3
    )


def test_an_unpacked_model_gives_the_same_file(trained, tok, tmp_path):
    model, _ = trained("mp,qat")
    pack(model, tmp_path / "m.safetensors")
    assert (
        onnx_model(unpack(tmp_path / "m.safetensors")).SerializeToString()
        == onnx_model(model).SerializeToString()
    )


@pytest.mark.parametrize("methods", ["", "mp,qat", "qat(bits=4)", "qat(bits=16)"])
def test_operators_of_onnx_runtime_compute_the_same(methods, trained, tok):
    "They are written for the int8 layers only, those with the same input side by side"
    model, val = trained(methods)
    plain, fused = (onnx_model(model, fused=own) for own in (False, True))
    own = [n for n in fused.graph.node if n.domain]
    assert {n.op_type for n in own} <= {"MatMulIntegerToFloat", "MultiHeadAttention"}
    assert not [n for n in plain.graph.node if n.domain]
    widths = {t.name: t.dims[-1] for t in fused.graph.initializer if t.dims}
    int8 = [m for m in linears(model).values() if runs_in_int8(m)]
    products = [n for n in own if n.op_type == "MatMulIntegerToFloat"]
    assert sum(widths[n.input[1]] for n in products) == sum(m.out_features for m in int8)
    assert len(products) == (len(int8) - 1 if int8 else 0)  # key and value of the one layer are joined
    ids = tok(list(val[TASKS["accept"].texts[0]][:9]), padding=True, return_tensors="np")
    feed = {name: ids[name].astype(np.int64) for name in INPUTS}
    sessions = [ort.InferenceSession(p.SerializeToString()) for p in (plain, fused)]
    before, after = (session.run(None, feed)[0] for session in sessions)
    assert abs(before - after).max() < 1e-2 and (before.argmax(1) == after.argmax(1)).all()
    assert int8 or np.array_equal(before, after)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
def test_activation_functions(act):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_act=act,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids, mask = torch.randint(1, 99, (2, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    with torch.no_grad():
        want = model(ids, attention_mask=mask).logits.numpy()
    session = ort.InferenceSession(onnx_model(model).SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(
        None, dict(input_ids=ids.numpy(), attention_mask=mask.numpy(), token_type_ids=0 * ids.numpy())
    )[0]
    assert np.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_model_does_not_pass(runtime, trained, tok, tmp_path, monkeypatch):
    "A session that answers something else: the figures, and nothing left behind"
    model, val = trained("")
    from combcomp.ship import runtimes as E

    true = getattr(E, f"{runtime}_session")
    monkeypatch.setattr(E, f"{runtime}_session", lambda *a: (lambda s: lambda feed: -s(feed))(true(*a)))
    with pytest.raises(
        ParityError,
        match=r"scores \d+\.\d+ and the PyTorch model \d+\.\d+ .* 0\.00% of 300 predictions equal",
    ):
        export(model, tmp_path / "m", runtime, tokenizer=tok, task="accept", data=val)
    assert not [*tmp_path.iterdir()]


def test_what_is_there_is_replaced_only_if_it_is_an_export(trained, tok, tmp_path):
    model, _ = trained("")
    (tmp_path / "m").mkdir()
    export(model, tmp_path / "m", "onnx", tokenizer=tok, data=False)
    export(model, tmp_path / "m", "openvino", tokenizer=tok, data=False)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "README.md",
        "config.json",
        "export.json",
        "openvino_model.bin",
        "openvino_model.xml",
        "references.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and load_about(tmp_path / "m")["parity"] is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    for name in ("mine", "mine/notes.txt"):
        with pytest.raises(FileExistsError, match="not an earlier export"):
            export(model, tmp_path / name, "onnx", tokenizer=tok, data=False)
    for f in (tmp_path / "m").iterdir():
        assert str(tmp_path).encode() not in f.read_bytes(), f.name


def test_arguments(trained, tok, tmp_path):
    model, val = trained("")
    bad = [
        (dict(runtime="tensorrt"), "runtime='tensorrt' is not allowed"),
        (dict(precision="f16"), "precision='f16'"),
        (dict(runtime="onnx", precision="bf16"), "precision='bf16'"),
        (dict(max_length=513), "max_length='513'"),
        (dict(task="sst"), "did you mean 'sst2'"),
        (dict(task="mnli"), "mnli has 3 outputs, and the model has 2"),
        (dict(), "which task"),
    ]
    for kwargs, message in bad:
        with pytest.raises(ValueError, match=message):
            export(model, tmp_path / "m", tokenizer=tok, **kwargs)
    small = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    with pytest.raises(ValueError, match="the tokenizer has 30522 tokens, and the model 50"):
        export(small, tmp_path / "m", tokenizer=tok, data=False)
    with pytest.raises(ValueError, match="which tokenizer"):
        export(small, tmp_path / "m", data=False)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(runtime="../x"), "runtime"),
        (dict(labels="ab"), "labels"),
        (dict(labels=[1]), "labels"),
        (dict(max_length=0), "max_length"),
        (dict(pad=-1), "pad"),
        (dict(precision="int1"), "precision"),
        (dict(format="other"), "not written by export"),
    ],
)
def test_a_changed_json_file(change, message, trained, tok, tmp_path):
    files = {"model.onnx": "", "tokenizer.json": ""}
    write_about(
        dict(
            format="combcomp-export",
            version=VERSION,
            runtime="onnx",
            labels=["a"],
            max_length=9,
            pad=0,
            vocab_size=9,
            precision="f32",
            files=files,
        )
        | change,
        tmp_path,
    )
    with pytest.raises(ValueError, match=message):
        load_exported(tmp_path)


@pytest.fixture(scope="module")
def exports(trained, tok, tmp_path_factory):
    "An exported folder for each runtime"
    model, folder = trained("")[0], tmp_path_factory.mktemp("exports")
    for runtime in RUNTIMES:
        export(model, folder / runtime, runtime, tokenizer=tok, data=False)
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_changed_byte_in_any_file_is_noticed_when_it_is_loaded(runtime, exports, tmp_path):
    for file in sorted(p for p in (exports / runtime).rglob("*") if p.is_file() and p.name != "README.md"):
        name, folder = file.relative_to(exports / runtime), tmp_path / file.name
        shutil.copytree(exports / runtime, folder)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(
            ValueError, match="was edited or damaged|is not valid JSON|was not written by export"
        ):
            load_exported(folder)
        (folder / name).unlink()
        if str(name) == LINKED:  # nothing here needs it
            assert load_exported(folder)
            continue
        with pytest.raises((ValueError, FileNotFoundError), match="has no "):
            load_exported(folder)


def sealed(folder, **change):
    "Checksums made anew, as one would who means harm"
    about = {k: v for k, v in json.loads((folder / "export.json").read_text()).items() if k != "check"}
    write_about(about | dict(files=file_hashes(folder, UNCHECKED)) | change, folder)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hostile_exports_are_refused_when_they_are_loaded(runtime, exports, tmp_path):
    def refused(message, harm, **change):
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        shutil.copytree(exports / runtime, folder)
        harm(folder)
        sealed(folder, **change) if change is not None else None
        with pytest.raises(ValueError, match=message):
            load_exported(folder)

    nothing = lambda folder: None
    tokenizer = json.loads((exports / runtime / "tokenizer.json").read_text())

    def more_tokens(folder):
        vocab = tokenizer["model"]["vocab"]
        (folder / "tokenizer.json").write_text(
            json.dumps(
                tokenizer
                | dict(
                    model=tokenizer["model"]
                    | dict(vocab=vocab | {f"new{i}": len(vocab) + i for i in range(9)})
                )
            )
        )

    refused("is not a tokenizer", lambda folder: (folder / "tokenizer.json").write_text("{}"))
    refused("where its labels need", nothing, labels=["a", "b", "c"])
    refused("temperature='0'", nothing, temperature=0)
    refused("inputs=", nothing, inputs=["input_ids", "pixels"])
    hostile = '{"texts": ["a"], "logits": [[1, 2, 3]], "exported": [[0, 1]], "difference": 0, "allowed": 1}'
    for text in ("[]", "{}", hostile):
        refused("holds no reference inputs", lambda folder: (folder / REFERENCES).write_text(text))
    refused("has token ids up to", more_tokens)
    refused(
        "names without folders",
        nothing,
        files=dict.fromkeys(
            ["model.onnx", "openvino_model.xml", "openvino_model.bin", "tokenizer.json", "../x"], ""
        ),
    )
    far = dict(texts=["a"], logits=[[0, 9]], exported=[[0, 9]], difference=0, allowed=0.1)
    refused("is another one", lambda folder: (folder / REFERENCES).write_text(json.dumps(far)))
    folder = tmp_path / "large"
    shutil.copytree(exports / runtime, folder)
    os.truncate(folder / "tokenizer.json", 2 * 10**9)
    with pytest.raises(ValueError, match="2,000 MB; such a file has at most 64"):
        load_exported(folder)
    (folder / "export.json").write_text("[" * 10**6)
    with pytest.raises(ValueError, match="RecursionError"):
        load_exported(folder)


def test_reading_needs_no_torch(trained, tok, tmp_path, run_py):
    model, _ = trained("")
    export(model, tmp_path / "m", "onnx", tokenizer=tok, data=False)
    code = f"import sys; from combcomp import load_exported; m = load_exported({str(tmp_path/'m')!r}); print(m('a dog')[0]['label'], [p for p in ('torch', 'transformers', 'onnx', 'openvino') if p in sys.modules])"
    label, _, modules = run_py(code).strip().partition(" ")
    assert label in TASKS["accept"].labels and modules == "[]"


def test_a_missing_runtime_names_the_extra(trained, tok, tmp_path, run_py):
    code = """
import sys; sys.modules['openvino'] = None
from combcomp.ship.runtimes import require
try: require('openvino')
except ImportError as e: print(e)
"""
    assert "pip install 'combcomp[runtime]'" in run_py(code)


def test_bench_takes_what_export_wrote(trained, tok, tmp_path):
    model, val = trained("qat")
    for runtime in RUNTIMES:
        export(model, tmp_path / runtime, runtime, tokenizer=tok, data=False)
    feeds = [tokens(2, 9), tokens(4, 17)]
    table = bench(
        {
            "torch": model,
            "folder": tmp_path / "openvino",
            "loaded": load_exported(tmp_path / "onnx", shape=None),
        },
        feeds,
        rounds=2,
        calls=2,
        threads=1,
    )
    assert (
        table.index.tolist() == ["torch", "folder", "loaded"]
        and (table["median_ms"] > 0).all()
        and table["faster"].iloc[0] == 1
    )
    assert (
        abs(table["per_second"] * table["median_ms"] / 1e3 - 3) < 1e-9
    ).all()  # three texts a call, on average
    with pytest.raises(FileNotFoundError, match="export did not write this folder"):
        bench(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="threads='-1'"):
        bench(model, threads=-1)


def test_a_fixed_shape(trained, tok, tmp_path):
    "Fewer texts than the batch, more, and longer ones, which are cut"
    model, val = trained("")
    for runtime in RUNTIMES:
        export(model, tmp_path / runtime, runtime, tokenizer=tok, data=False, max_length=12)
        free, fixed = load_exported(tmp_path / runtime), load_exported(tmp_path / runtime, shape=(4, 12))
        for texts in (val["sentence"][:1], val["sentence"][:9], ["word " * 40]):
            assert abs(free.logits(texts) - fixed.logits(texts)).max() < 1e-4
        assert fixed.predict([]) == []
        with pytest.raises(ValueError, match="length of shape='13'"):
            load_exported(tmp_path / runtime, shape=(4, 13))


# A folder for other tools, that tests itself


@pytest.fixture(scope="module")
def served(trained, tok, tmp_path_factory):
    "(task, runtime) -> an export with references from its validation data"
    folder = tmp_path_factory.mktemp("served")
    for name in ("accept", "hypernym", "glosssim"):
        model, val = trained("qat", name)
        for runtime in RUNTIMES:
            place, more = folder / f"{name}-{runtime}", dict(temperature=1.7) if name == "accept" else {}
            export(model, place, runtime, tok, name, val, within=5, equal=0.9, precision="f32", **more)
    return lambda name, runtime: folder / f"{name}-{runtime}"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["accept", "hypernym", "glosssim"])
def test_other_tools_find_what_they_look_for(name, runtime, served):
    "As the loaders of optimum and transformers.js do it: file names, configuration, tokenizer, names and axes of the graph"
    folder, texts = served(name, runtime), TASKS[name].texts
    references = json.loads((folder / REFERENCES).read_text())
    config, tokenizer = (
        c.from_pretrained(folder) for c in (transformers.AutoConfig, transformers.AutoTokenizer)
    )
    assert config.num_labels == len(TASKS[name].labels or (0,)) and config.model_type == "bert"
    assert (config.problem_type == "regression") == (name == "glosssim")
    assert config.architectures == ["BertForSequenceClassification"] and tokenizer.model_max_length == 128
    columns = [*zip(*references["texts"])] if len(texts) == 2 else [references["texts"]]
    feed = dict(tokenizer(*map(list, columns), padding=True, truncation=True, return_tensors="np"))
    assert feed["input_ids"].shape[1] < 128  # nothing is padded to a fixed length
    if runtime == "onnx":
        assert config.to_dict()["transformers.js_config"] == dict(dtype="q8")
        assert (folder / LINKED).read_bytes() == (folder / "model.onnx").read_bytes()
        session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert {i.name for i in session.get_inputs()} == {*feed} and session.get_outputs()[0].name == "logits"
        assert all(i.shape == ["batch", "length"] and i.type == "tensor(int64)" for i in session.get_inputs())
        logits = session.run(["logits"], feed)[0]
    else:
        model = ov.Core().read_model(str(folder / "openvino_model.xml"))
        assert {i.get_any_name() for i in model.inputs} == {*feed}
        assert model.output("logits").partial_shape.rank.get_length() == 2
        assert all(i.partial_shape.is_dynamic for i in model.inputs)
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits = compiled(feed)["logits"]
        assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert abs(logits - references["exported"]).max() < 1e-4
    assert len(references["texts"]) == 10 and load_about(folder)["inputs"] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["accept", "hypernym", "glosssim"])
def test_the_code_in_the_readme_runs_as_it_is_written(name, runtime, served, run_py):
    "In a process without combcomp, torch and transformers; the numbers are those of load_exported"
    folder = served(name, runtime)
    readme = (folder / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    alone = "import os, sys; sys.modules.update(dict.fromkeys(['combcomp', 'torch', 'transformers']))\n"
    said = run_py(f"{alone}os.chdir({str(folder)!r})\n{code}").split()
    pair = ("a tall tree", "a kind of plant")
    (answer,) = load_exported(folder).predict(
        ["a tall tree with edible nuts"] if name == "accept" else [pair]
    )
    assert abs(float(said[-1]) - answer["score"]) < 2e-3 and said[-2] == (answer["label"] or "plant')")
    assert "references=0" in readme and str(folder.parent) not in readme


def test_references_are_of_the_users_data_unless_there_are_none(served, trained, tok, tmp_path):
    model, val = trained("qat")
    stored = json.loads((served("accept", "onnx") / REFERENCES).read_text())
    assert {*stored["texts"]} <= {*val["sentence"]}
    export(model, tmp_path / "none", "onnx", tok, "accept", val, within=5, equal=0.9, references=0)
    assert not (tmp_path / "none" / REFERENCES).exists() and load_exported(tmp_path / "none")
    everything = "".join(p.read_text() for p in (tmp_path / "none").glob("*.[jm][sd]*"))
    assert not [t for t in stored["texts"] if t in everything]
    with pytest.raises(ValueError, match="references='-1'"):
        export(model, tmp_path / "m", "onnx", tok, data=False, references=-1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_export_of_the_earlier_version_loads(runtime, served, tmp_path):
    "Version 2 had other names for OpenVINO, and neither inputs, references nor a temperature"
    new, old = served("hypernym", runtime), tmp_path / "old"
    old.mkdir()
    names = {"model.onnx": "model.onnx", "tokenizer.json": "tokenizer.json"}
    names |= {f"openvino_model.{end}": f"model.{end}" for end in ("xml", "bin")}
    for name, before in names.items():
        if (new / name).is_file():
            shutil.copy(new / name, old / before)
    later = ("inputs", "temperature", "made_with", "pad_token")
    about = {k: v for k, v in load_about(new).items() if k not in later}
    write_about(about | dict(version=2, files=file_hashes(old)), old)
    texts = json.loads((new / REFERENCES).read_text())["texts"]
    loaded = load_exported(old)
    assert np.array_equal(loaded.logits(texts), load_exported(new).logits(texts))
    assert loaded.about["temperature"] == 1 and "nothing can be compared" in verify(old).problems[0]


def test_a_model_without_token_types_is_fed_without_them():
    class Encoding:
        ids, attention_mask, type_ids = [5, 6], [1, 1], [0, 1]

    feed = pad_batch([Encoding], 3, (1, 3), inputs=["input_ids", "attention_mask"])
    assert {k: v.tolist() for k, v in feed.items()} == dict(input_ids=[[5, 6, 3]], attention_mask=[[1, 1, 0]])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_verify_takes_little_time_and_says_what_is_wrong(runtime, served, tmp_path, monkeypatch):
    folder = tmp_path / "m"
    shutil.copytree(served("accept", runtime), folder)
    found = verify(folder, threads=1)
    assert found.ok and found.examples == found.equal == 10 and found.seconds < 0.2 and not found.notes
    monkeypatch.setattr(runtimes, "instructions", lambda: ["avx2"])
    notes = " ".join(verify(folder, threads=1).notes)
    assert "lacks" in notes or not load_about(folder)["made_with"]["instructions"]
    assert ("no VNNI" in notes) == (runtime == "onnx")
    monkeypatch.undo()
    sealed(folder, made_with=dict(runtime_version="0.1", instructions=[]))
    found = verify(folder, threads=1)
    assert found.ok and "exported with" in found.notes[0] and "0.1" in found.notes[0]
    file = folder / FILES[runtime]
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)
    found = verify(folder)
    assert not found.ok and found.problems[0].endswith("was edited or damaged; export the model again")
    assert found.problems[0].startswith(f"{folder}/{file.name}") or file.name in found.problems[0]


def in_pairs(layer, top):
    "A linear layer as sums of two products each, cut at a number: 16 bits in ONNX Runtime without VNNI"

    def forward(x):
        q = torch.clamp(torch.round(x / layer.input_scale) + layer.input_zero, 0, 255)
        w = torch.round(layer.weight / layer.weight_scale[:, None])
        pairs = q.unflatten(-1, (-1, 2))[..., None, :, :] * w.unflatten(-1, (-1, 2))
        total = pairs.sum(-1).clamp(-top, top - 1).sum(-1)
        total = total - layer.input_zero * w.sum(-1)
        return total * layer.input_scale * layer.weight_scale + layer.bias

    return forward


def computed_in_pairs(model, feed, top):
    "The logits of a model whose linear layers are computed so"
    layers = linears(model).values()
    try:
        for layer in layers:
            layer.forward = in_pairs(layer, top)
        with torch.inference_mode():
            return model(**{k: torch.from_numpy(v) for k, v in feed.items()}).logits.numpy()
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def test_saturated_sums_are_noticed(trained, tok, tmp_path, monkeypatch):
    "Logits as of a processor without VNNI are beyond the allowed difference, here and for other tools"
    from combcomp.ship import verification

    model = copy.deepcopy(trained("qat")[0])
    last = model.classifier  # with the largest weights that there are, two inputs above their middle saturate
    sign = torch.tensor([[1.0], [-1.0]])
    last.weight.data = (127 * sign * last.weight_scale[:, None]).expand_as(last.weight).clone()
    export(model, folder := tmp_path / "m", "onnx", tok, data=False)

    def computed(here, elsewhere):
        monkeypatch.setattr(runtimes, "onnx_session", lambda *_: lambda f: computed_in_pairs(model, f, here))
        other = lambda e, _, texts: computed_in_pairs(
            model, pad_batch(e.tokenizer.encode_batch(texts), 0), elsewhere
        )
        monkeypatch.setattr(verification, "stock_logits", other)
        return verify(folder)

    exact, cut = 2**31, 2**15
    assert computed(exact, exact).ok and load_exported(folder)
    (problem,) = computed(exact, cut).problems
    assert problem.startswith("opened by other tools") and "saturate" in problem and load_exported(folder)
    (problem,) = computed(cut, cut).problems
    assert "away from the one at export" in problem
    with pytest.raises(ValueError, match="of a reference input is"):
        load_exported(folder)


def test_a_temperature_changes_probabilities_and_no_label(served, trained, tok, tmp_path):
    warm, (model, val) = load_exported(served("accept", "onnx")), trained("qat")
    export(model, tmp_path / "cold", "onnx", tok, data=False)
    cold, texts = load_exported(tmp_path / "cold"), val["sentence"][:50]
    a, b = warm.predict(texts), cold.predict(texts)
    assert [x["label"] for x in a] == [x["label"] for x in b] and warm.about["temperature"] == 1.7
    assert all(x["score"] < y["score"] for x, y in zip(a, b)) and cold.about["temperature"] == 1
    assert np.allclose(warm.probabilities(texts).max(1), [x["score"] for x in a])
    with pytest.raises(ValueError, match="which has no probability"):
        load_exported(served("glosssim", "onnx")).probabilities([("a", "b")])
