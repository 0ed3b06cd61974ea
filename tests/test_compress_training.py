"What composing promises, held against a plain Trainer, across processes, and for input that is wrong"

import json, shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch, transformers
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn.utils import parametrize

import combcomp.compress.quantization
from conftest import tiny_family
from combcomp import Run, load_results, pack, run, unpack
from combcomp.spec import SUBSETS, parse
from combcomp.study.runner import model_file, unfinished
from combcomp.compress.methods import Method, convert, embeddings, encoder_linears, linears, prepare
from combcomp.models.encoders import load_model, load_tokenizer, predict, source
from combcomp.compress.quantization import qmax
from combcomp.study.store import read_row, writable
from combcomp.data.tasks import TASKS
from combcomp.data.loading import load_task
from combcomp.compress.training import Batches, arguments, build, compress, encode, fit, newest_checkpoint

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
QUIET = lambda *a, **k: None
TINY = tiny_family()


@pytest.fixture(scope="module")
def accept(cache):
    "(task, tokenizer, 96 encoded examples with stand-in teacher logits, their texts)"
    task, tok = TASKS["accept"], load_tokenizer(TINY, "l1")
    data = load_task("accept", limit=96, cache=cache)["train"]
    logits = np.random.default_rng(0).normal(size=(len(data), 2)).tolist()
    return task, tok, encode(data.add_column("teacher", logits), tok, task.texts), data


def student():
    return load_model(TINY, "l1", TASKS["accept"].labels)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_no_methods_is_bit_for_bit_a_plain_trainer(accept, tmp_path):
    task, tok, data, _ = accept
    plain = student()
    trainer = transformers.Trainer(
        plain,
        arguments(tmp_path, 3, 1, 16, 1e-4),
        transformers.DataCollatorWithPadding(tok),
        data.remove_columns(["teacher"]),
    )
    trainer._signature_columns, forward = None, plain.forward
    plain.forward = lambda length=None, **inputs: forward(**inputs)  # Trainer passes every column on
    trainer.train()
    ours = student()
    compress(ours, tok, data, (), log=QUIET, seed=3, epochs=1, batch_size=16, lr=1e-4)
    assert same(state(plain), state(ours)) and not same(state(ours), state(student()))


@pytest.mark.parametrize("methods", SUBSETS, ids=lambda m: m or "none")
def test_subset(methods, accept, tmp_path):
    "Every subset trains, converts without changing an output, keeps its promises, and comes back from its file"
    task, tok, data, texts = accept
    model, before = student(), state(student())
    prepared = build(parse(methods)[0]) if methods else []
    for m in prepared:
        m.prepare(model)
    fit(model, tok, data, prepared, epochs=2, batch_size=16, log=QUIET)
    live = predict(model, tok, texts, task.texts)
    for m in prepared:
        m.convert(model)
    from combcomp.compress.methods import strip_parametrizations

    strip_parametrizations(model)
    assert np.array_equal(live, predict(model, tok, texts, task.texts))
    assert not same(before, state(model)) and state(model).keys() == before.keys()
    for m in model.modules():
        assert not (parametrize.is_parametrized(m) or m._forward_hooks or m._forward_pre_hooks)
    for name, m in encoder_linears(model).items():
        zeros = int((m.weight == 0).sum())
        if "mp" in methods:
            assert m.weight_pruned == round(0.6 * m.weight.numel()) and zeros >= m.weight_pruned, name
        if methods == "mp":
            assert zeros == m.weight_pruned
        if methods in ("", "kd"):
            assert zeros < 10
    for name, m in (linears(model) | embeddings(model)).items():
        if "qat" not in methods:
            assert not hasattr(m, "weight_bits")
            continue
        q = m.weight / m.weight_scale[:, None]
        assert (
            torch.equal(q.round() * m.weight_scale[:, None], m.weight)
            and q.round().abs().max() <= qmax(8) == 127
        ), name
    pack(model, tmp_path / "m.safetensors")
    assert np.array_equal(live, predict(unpack(tmp_path / "m.safetensors"), tok, texts, task.texts))


@pytest.mark.parametrize("side", ("right", "left"))
@pytest.mark.parametrize(
    "labels", ([2, 0, -100], [0.5, float("nan"), 3.0], [[1.0, 0.0], [float("nan")] * 2, [0.0, 1.0]])
)
def test_batches_are_those_of_the_collator(labels, side):
    tok = load_tokenizer("minilm", "l1")
    tok.padding_side = side
    texts = dict(a=["one", "a longer text than the others", "two three"], b=["four five", "six", ""])
    data = Dataset.from_dict(texts | dict(label=labels, teacher=[[0.1, 0.2], [1 / 3, -4.0], [5.0, 6.0]]))
    data = encode(data, tok, ("a", "b")).select([2, 0, 1])  # in another order than they are stored in
    collate = transformers.DataCollatorWithPadding(tok)
    for rows in ([0], [1, 2, 0]):
        batch, expected = Batches(data, tok).__getitems__(rows), collate([data[i] for i in rows])
        assert {*batch} == {*expected} - {"length"} == {*tok.model_input_names, "labels", "teacher"}
        for name, tensor in batch.items():
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor.nan_to_num(-7), expected[name].nan_to_num(-7)), name


class NotFinite(Method):
    "The loss of one step is not a number"

    def __init__(self, step):
        self.left = step

    def loss(self, loss, out, batch):
        self.left -= 1
        return loss if self.left != -1 else loss * float("nan")


@pytest.mark.parametrize("step", (0, 2, 5))
def test_a_loss_that_is_not_a_number_is_named_by_its_step_and_is_in_no_checkpoint(step, accept, tmp_path):
    "It is checked one step later; the last of the six steps has none after it"
    with pytest.raises(FloatingPointError, match=f"the loss became nan at step {step};"):
        methods = [NotFinite(step)]
        fit(student(), accept[1], accept[2], methods, 0, 1, 16, folder=tmp_path, checkpoint=0.0, log=QUIET)
    newest, _ = newest_checkpoint(tmp_path, QUIET)
    assert (Path(newest).name if step else newest) == (f"checkpoint-{step}" if step else None)
    assert not step or all(w.isfinite().all() for w in load_file(f"{newest}/model.safetensors").values())


def test_query_key_and_value_share_one_observer():
    model = student()
    (quantize,) = build(parse("qat")[0])
    quantize.prepare(model)
    assert (
        len(quantize.observers) == 4 + 2
    )  # attention input, its output, the two of the feed-forward; pooler and classifier
    calls = []
    r = quantize.observers["bert.encoder.layer.0.attention.self"]
    r.register_forward_hook(lambda *a: calls.append(1))
    model.train()(input_ids=torch.tensor([[101, 2023, 102]]))
    assert len(calls) == 1


@pytest.mark.parametrize("methods", ("qat", "qat(step=0.8)"))
def test_no_whole_table_is_rounded_in_a_step(monkeypatch, methods):
    model = student()
    (quantize,) = build(parse(methods)[0])
    quantize.prepare(model)
    seen, follow = [], combcomp.compress.quantization.straight_through
    monkeypatch.setattr(
        combcomp.compress.quantization,
        "straight_through",
        lambda w, *args: (seen.append(w.shape[0]), follow(w, *args))[1],
    )
    model.train()(input_ids=torch.tensor([[101, 2023, 102]])).logits.sum().backward()
    assert len(seen) == 8 + 3 and max(seen) <= 128  # the widest linear layer; the table has 30,522 rows


def test_a_run_repeats_in_another_process(tmp_path, cache, run_py):
    "One of another hash seed, and with as many threads as this one"
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        shutil.copytree(cache, folder / "cache")
    cfg = Run(family=TINY, size="l1", methods="mp,qat", limit=64, epochs=1)
    code = f"""
import transformers; transformers.logging.set_verbosity_error()
from combcomp import Run, run
row = run(Run(family={TINY!r}, size='l1', methods='mp,qat', limit=64, epochs=1), {str(there)!r})
print(hash('combcomp'), row['score'], row['mb_file'], row['nonzeros'])
"""
    said = run_py(code, PYTHONHASHSEED=1, OMP_NUM_THREADS=torch.get_num_threads()).splitlines()[-1].split()
    row = run(cfg, here, log=QUIET)
    assert said[0] != str(hash("combcomp"))
    assert said[1:] == [str(row[k]) for k in ("score", "mb_file", "nonzeros")]
    assert model_file(cfg, here).read_bytes() == model_file(cfg, there).read_bytes()


def test_a_run_killed_between_its_stages_goes_on_from_there(tmp_path, cache):
    for name in ("killed", "whole"):
        shutil.copytree(cache, tmp_path / name / "cache")
    cfg = Run(family=TINY, size="l1", task="accept", methods="mp > qat", limit=64, epochs=1)

    class Killed(Exception):
        pass

    def log(text, **k):
        if "stage 2" in text:
            raise Killed

    with pytest.raises(Killed):
        run(cfg, tmp_path / "killed", log=log)
    assert (unfinished(cfg, tmp_path / "killed") / "stages.safetensors").is_file() and len(
        load_results(tmp_path / "killed")
    ) == 0
    said = []
    resumed, whole = run(cfg, tmp_path / "killed", log=lambda text, **k: said.append(text)), run(
        cfg, tmp_path / "whole", log=QUIET
    )
    assert not [t for t in said if "stage 1 of 2" in t] and resumed["steps"] == whole["steps"] == 4
    assert (
        model_file(cfg, tmp_path / "killed").read_bytes() == model_file(cfg, tmp_path / "whole").read_bytes()
    )
    assert not unfinished(cfg, tmp_path / "killed").exists() and resumed["methods"] == "mp > qat"
    unfinished(cfg, tmp_path / "killed").mkdir()
    (unfinished(cfg, tmp_path / "killed") / "stages.safetensors").write_bytes(b"{}")
    again = run(cfg, tmp_path / "killed", force=True, log=lambda text, **k: said.append(text))
    assert again["steps"] == 4 and [t for t in said if "stages.safetensors is damaged and is deleted" in t]
    assert (
        model_file(cfg, tmp_path / "killed").read_bytes() == model_file(cfg, tmp_path / "whole").read_bytes()
    )


class PowerCut(Method):
    "Ends the training in its middle"

    def step(self, progress):
        if progress > 0.5:
            raise KeyboardInterrupt


def test_a_damaged_checkpoint_is_not_used(accept, tmp_path):
    "One byte of one file of the newest checkpoint is changed: the older one goes on, to the same model; which file makes no difference"
    tok, train = accept[1], accept[2].select(range(64))

    def trained(folder, *more, log=QUIET):
        model = student()
        methods = prepare(model, [*build(parse("mp,qat")[0]), *more])
        fit(model, tok, train, methods, epochs=2, batch_size=16, folder=folder, checkpoint=0.0, log=log)
        return state(convert(model, methods))

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", PowerCut())
    newest = max((tmp_path / "cut").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    names = sorted(p.name for p in newest.iterdir())
    assert {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "model.safetensors",
        "whole.json",
    } <= {*names}
    for name in names:
        folder, said = tmp_path / name, []
        shutil.copytree(tmp_path / "cut", folder)
        file = folder / newest.name / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        if name in ("model.safetensors", "optimizer.pt"):
            assert same(trained(folder, log=lambda t, **k: said.append(t)), whole), name
            assert any("resumed at step" in t for t in said), name
        else:
            path, _ = newest_checkpoint(folder, lambda t, **k: said.append(t))
            assert path and not path.endswith(newest.name)
        assert any(f"{newest.name} is incomplete or damaged" in t for t in said), name


@pytest.mark.parametrize(
    "methods",
    (
        "qat(bits=16, activations=16, embeddings=16)",
        "qat(bits=2)",
        "qat(activations=None)",
        "mp(embeddings=True, scope='global', schedule='cubic'),qat(bits=4)",
        "mp(neurons=0.5, embeddings=True, scope='global'),qat(bits=4)",
        "qat(step=0.8)",
        "mp(neurons=0.5, embeddings=True, scope='global'),qat(step=1.2)",
    ),
)
def test_options_reach_the_file(methods, accept, tmp_path):
    "Every option trains, converts, packs, and is there in the unpacked model"
    task, tok, data, texts = accept
    model, spec = student(), {type(s).__name__.lower(): s for s in parse(methods)[0]}
    compress(model, tok, data, parse(methods), epochs=1, batch_size=32, log=QUIET)
    pack(model, tmp_path / "m.safetensors")
    back = unpack(tmp_path / "m.safetensors")
    assert np.array_equal(predict(model, tok, texts, task.texts), predict(back, tok, texts, task.texts))
    qat = spec["qat"]
    for name, m in linears(back).items():
        assert getattr(m, "input_bits", None) == qat.activations, name
        assert m.weight_bits == qat.bits if qat.step is None else m.weight_bits < qat.bits, name
    for name, m in embeddings(back).items():
        assert m.weight_bits == qat.embeddings if qat.step is None else m.weight_bits < qat.embeddings, name
    if "mp" in spec:
        pruned = encoder_linears(back) | embeddings(back)
        total = sum(m.weight.numel() for m in pruned.values())
        assert sum(m.weight_pruned for m in pruned.values()) == round(0.6 * total)
        assert (
            back.config.intermediate_size
            == back.bert.encoder.layer[0].output.dense.in_features
            == round(128 * (1 - spec["mp"].neurons))
        )


# What a family may be


def lay(folder, model, vocab=Path(source("minilm", "l1")) / "vocab.txt"):
    "A checkpoint in a folder as the hub has it: config, weights, vocabulary"
    model.save_pretrained(folder)
    shutil.copy(vocab, folder)
    return str(folder)


def tiny(**kwargs):
    "A BERT of the shape of the paper's TINY with random weights"
    config = transformers.BertConfig(
        num_hidden_layers=2, hidden_size=128, intermediate_size=512, num_attention_heads=2, **kwargs
    )
    torch.manual_seed(0)
    return (
        transformers.BertForPreTraining(config)
        if not kwargs
        else transformers.BertForSequenceClassification(config)
    )


UNKNOWN = """
def tried(size):
    start = time.time()
    try: run(Run(family='bert', size=size, limit=64), OUT)
    except OSError as e: print(time.time() - start, e)
"""


def fails_soon(line):
    "Does an error come within ten seconds, and say how to go on?"
    seconds, _, message = line.partition(" ")
    return float(seconds) < 10 and "HF_HOME" in message and "minilm" in message


def test_bert_comes_from_the_hub_cache_by_name_and_what_is_not_there_fails_soon(tmp_path, cache, run_py):
    name, commit = "models--google--bert_uncased_L-2_H-128_A-2", "30b0a37ccaaa32f332884b96992754e246e48c5f"
    snapshot = tmp_path / "home" / "hub" / name / "snapshots" / commit
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    lay(snapshot, tiny())
    shutil.copytree(cache, tmp_path / "out" / "cache")
    code = f"""
import time, transformers; transformers.logging.set_verbosity_error()
from combcomp import Run, run, unpack
from combcomp.study.runner import model_file
OUT = {str(tmp_path/'out')!r}
cfg = Run(family='bert', size='tiny', methods='mp,qat', limit=64, epochs=1)
row = run(cfg, OUT)
print(row['parameters'], unpack(model_file(cfg, OUT)).config.num_hidden_layers)
{UNKNOWN}
tried('mini')
"""
    *_, trained, failed = run_py(code, HF_HOME=tmp_path / "home", HF_HUB_OFFLINE="1").splitlines()
    assert trained == f"{4_385_920 + 10*128 + 10} 2" and fails_soon(failed)
    assert {*load_results(tmp_path / "out")["size"]} == {"tiny"}


def test_a_hub_name_without_network_or_cache_fails_soon_and_says_how_to_go_on(tmp_path, run_py):
    code = (
        f"import time; from combcomp import Run, run; OUT = {str(tmp_path/'out')!r}\n{UNKNOWN}\ntried('tiny')"
    )
    said = run_py(code, HF_HOME=tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    assert fails_soon(said.splitlines()[-1]) and len(load_results(tmp_path / "out")) == 0


def test_a_folder_is_a_family_and_a_broken_one_leaves_no_row(tmp_path, out):
    folder = lay(tmp_path / "mine", tiny(num_labels=2))
    row = run(Run(family=folder, size="l1", task="accept", limit=64, epochs=1), tmp_path / "out", log=QUIET)
    assert row["parameters"] < tiny(num_labels=2).num_parameters()
    broken = tiny(num_labels=2)
    broken.bert.pooler.dense.weight.data[0, 0] = float("nan")
    cfg = Run(family=lay(tmp_path / "broken", broken), size="full", task="accept", limit=64, epochs=1)
    with pytest.raises(FloatingPointError, match="the loss became nan"):
        run(cfg, tmp_path / "out", log=QUIET)
    assert (
        load_results(tmp_path / "out")["id"].tolist() == [row["id"]]
        and not model_file(cfg, tmp_path / "out").exists()
    )


def test_a_teacher_of_your_own(tmp_path, out):
    cfg = Run(
        family=TINY,
        size="l1",
        task="accept",
        methods="kd",
        limit=64,
        epochs=1,
        teacher=lay(tmp_path / "fresh", tiny()),
    )
    with pytest.raises(ValueError, match="never fine-tuned"):
        run(cfg, tmp_path / "out", log=QUIET)
    names = dict(id2label={0: "acceptable", 1: "swapped"}, label2id={"acceptable": 0, "swapped": 1})
    with pytest.raises(ValueError, match="in the same order"):
        run(replace(cfg, teacher=lay(tmp_path / "order", tiny(**names))), tmp_path / "out", log=QUIET)
    names = dict(
        id2label=dict(enumerate(TASKS["accept"].labels)),
        label2id={n: i for i, n in enumerate(TASKS["accept"].labels)},
    )
    with pytest.raises(ValueError, match="where guessing gets"):
        run(replace(cfg, teacher=lay(tmp_path / "noise", tiny(**names))), tmp_path / "out", log=QUIET)
    assert len(load_results(tmp_path / "out")) == 0


# Outputs


def test_a_folder_that_cannot_be_written_is_known_before_training(tmp_path, run_py):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the outputs folder"):
        run(Run(limit=64), tmp_path / "file")
    code = f"""
import resource; from combcomp import Run, run
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)) # as on a full disk: every larger file fails
try: run(Run(limit=64), {str(tmp_path/'full')!r})
except OSError as e: print(e)
"""
    assert "cannot write to the outputs folder" in run_py(code) and not [
        p for p in (tmp_path / "full").rglob("*") if p.is_file()
    ]


def test_many_processes_may_try_the_outputs_folder_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        assert {*pool.map(writable, [tmp_path] * 400)} == {tmp_path} and not [*tmp_path.iterdir()]


def test_done_is_done_and_force_is_force(out):
    cfg, said = Run(family=TINY, size="l1", task="accept", limit=64, epochs=1), []
    log = lambda text, **k: said.append(text)
    first = run(cfg, out, log=log)
    assert run(cfg, out, log=log) == first and "is done" in said[-1] and cfg.id in said[-1]
    again = run(cfg, out, force=True, log=log)
    volatile = {k for k in first if "second" in k} | {"started"}
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in first.items() if k not in volatile
    }
    assert read_row(cfg.id, out) == again
