"A saved model comes back bit for bit, its card says what its row says and no more, and a hub on loopback gets it and gives it back"

import base64, dataclasses, filecmp, hashlib, json, os, re, shutil, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np, pandas as pd, pytest, transformers, yaml
from hypothesis import given, settings, strategies as st

import combcomp
from conftest import REPO
from combcomp import Run, run
from combcomp.share import hub, model_card
from combcomp.spec import parse
from combcomp.ship.packed_file import CorruptFile, inspect, pack, unpack
from combcomp.study.store import load_results, read_row
from combcomp.study.reductions import KEYS, interval
from combcomp.study.bootstrap import bootstrap_scores

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
READS = dict(max_length=128, pairs=False, cased=False)
CFG = Run(family="miniature", size="2x32", task="accept", methods="mp,qat", limit=64, epochs=1)
TEXTS = ["We ate on the terrace", "We on ate the terrace", "a tall tree, a kind of plant", "word " * 300]


@pytest.fixture(scope="module")
def out(tmp_path_factory, cache):
    "An outputs folder with one run"
    folder = tmp_path_factory.mktemp("hub") / "out"
    shutil.copytree(cache, folder / "cache")
    run(CFG, folder, log=lambda *a, **k: None)
    return folder


@pytest.fixture(scope="module")
def packed(out):
    return out / "models" / f"{CFG.id}.safetensors"


@pytest.fixture(scope="module")
def row(out):
    return read_row(CFG.id, out)


@pytest.fixture(scope="module")
def saved(out):
    return combcomp.save_pretrained(CFG, out.parent / "shipped", out)


@pytest.fixture(scope="module")
def logits(saved):
    return combcomp.load(saved).logits(TEXTS)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "folder")


# The folder


def test_round_trip(saved, packed, row, logits):
    assert sorted(p.name for p in saved.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "row.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert filecmp.cmp(packed, saved / "model.safetensors", shallow=False)
    loaded, model = combcomp.load(saved), unpack(packed)
    assert loaded.row == row and all(
        (a == b).all() for a, b in zip(loaded.model.state_dict().values(), model.state_dict().values())
    )
    enc = loaded.tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    assert abs(logits[:2] - model(**enc).logits.detach().numpy()).max() < 1e-5
    assert np.array_equal(
        combcomp.load(packed).logits(TEXTS), logits
    ), "the packed file of the run finds its tokenizer through its row"
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and config["id2label"] == {
        "0": "swapped",
        "1": "acceptable",
    }
    assert (
        config["combcomp"] == dict(run=CFG.id, methods="mp,qat", task="accept", **READS)
        and config["num_hidden_layers"] == 2
    )


def test_answers(saved, logits):
    loaded = combcomp.load(saved)
    answers = loaded.predict(TEXTS)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [a["label"] for a in answers] == [["swapped", "acceptable"][i] for i in logits.argmax(1)]
    assert np.allclose([a["score"] for a in answers], softmax.max(1), atol=1e-6)
    assert (
        loaded(TEXTS[0]) == loaded.predict(TEXTS[:1])
        and loaded([]) == []
        and loaded.logits([]).shape == (0, 2)
    )
    assert loaded.about["max_length"] == 128 and np.array_equal(
        loaded.logits("word " * 126), loaded.logits("word " * 300)
    ), "the rest is cut off"
    for bad in ([3], [("a", "b", "c")], [None]):
        with pytest.raises(ValueError, match="is not a string"):
            loaded.predict(bad)


def test_transformers_alone_does_not_read_it(saved):
    "As the card warns: it opens the folder, and makes up the weights"
    from transformers import AutoModelForSequenceClassification

    assert "would give random weights instead" in (saved / "README.md").read_text()
    model, info = AutoModelForSequenceClassification.from_pretrained(saved, output_loading_info=True)
    assert "bert.embeddings.word_embeddings.weight" in info["missing_keys"] and model.config.id2label == {
        0: "swapped",
        1: "acceptable",
    }


def test_a_regression_answers_with_numbers(tmp_path):
    from combcomp.models.encoders import load_model, load_tokenizer

    pack(load_model("miniature", "2x32", None).eval(), tmp_path / "model.safetensors")
    load_tokenizer("miniature", "2x32").save_pretrained(tmp_path)
    (answer,) = (loaded := combcomp.load(tmp_path)).predict([("one gloss", "another")])
    assert (
        answer == dict(label=None, score=float(loaded.logits([("one gloss", "another")])[0, 0]))
        and loaded.row is None
    )


def test_saving_is_whole_or_not_at_all(out, row, tmp_path):
    combcomp.save_pretrained(row, tmp_path / "m", out)
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    for name in "mn":  # the card is the last file, and there is none of such a row
        with pytest.raises(ValueError, match="metric='beauty' is not allowed"):
            combcomp.save_pretrained(dict(row, metric="beauty"), tmp_path / name, out)
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and {
        p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()
    } == before
    combcomp.save_pretrained(row, tmp_path / "m", out, license="mit")  # an earlier one of ours is replaced
    assert "license: mit" in (tmp_path / "m" / "README.md").read_text() and [
        p.name for p in tmp_path.iterdir()
    ] == ["m"]


def test_nothing_of_others_is_replaced(out, saved, folder, tmp_path):
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(saved)
    plain = shutil.copytree(saved, tmp_path / "plain")
    (plain / "row.json").unlink()  # as transformers writes it
    for name in ("folder", "file", "link", "plain"):
        with pytest.raises(FileExistsError, match=name):
            combcomp.save_pretrained(CFG, tmp_path / name, out)
    assert (
        (folder / "notes.txt").read_text() == "mine"
        and (tmp_path / "file").read_text() == "x"
        and (plain / "config.json").is_file()
    )
    assert combcomp.save_pretrained(CFG, tmp_path / "empty", out) == tmp_path / "empty"


def test_what_is_missing_is_named(out, row, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not done.*run\(cfg\)"):
        combcomp.save_pretrained(Run(size="l1", seed=9), tmp_path / "m", out)
    with pytest.raises(FileNotFoundError, match="force=True"):
        combcomp.save_pretrained(dict(row, id="0" * 16), tmp_path / "m", out)
    for id in ("../../x", "", None, 7):
        with pytest.raises(ValueError, match="16 hex digits"):
            combcomp.save_pretrained(dict(row, id=id), tmp_path / "m", out)
    (tmp_path / "models").mkdir()
    shutil.copy(out / "models" / f"{CFG.id}.safetensors", tmp_path / "models" / f"{'1'*16}.safetensors")
    with pytest.raises(ValueError, match=f"is the model of run {CFG.id}"):
        combcomp.save_pretrained(dict(row, id="1" * 16), tmp_path / "m", tmp_path)
    assert not (tmp_path / "m").exists()


OWN = "file:{}/reviews.csv?text=review&label=stars&validation={}%2Fheld_out.csv#3f2a9c0d1e2f"


def test_no_folder_leaves_the_machine(packed, row, tmp_path):
    "A task, a family and a teacher in folders of somebody: their names are in no file that is saved, not even inside the model"
    secret = tmp_path / "private-folder"
    from combcomp.models.encoders import source

    family = shutil.copytree(source("miniature", "2x32"), secret / "my-bert")
    settings = json.loads((family / "tokenizer_config.json").read_text())
    (family / "tokenizer_config.json").write_text(
        json.dumps(
            settings
            | dict(name_or_path=str(family), special_tokens_map_file=str(family / "special_tokens_map.json"))
        )
    )
    task, model = OWN.format(secret, secret), unpack(packed)
    model.config.combcomp = dict(model.config.combcomp, task=task)
    (tmp_path / "models").mkdir()
    pack(model, tmp_path / "models" / f"{CFG.id}.safetensors")
    mine = dict(
        row,
        task=task,
        family=str(family),
        size="full",
        teacher=str(secret / "teacher"),
        methods="kd,mp,qat",
        teacher_score=80.5,
    )
    saved = combcomp.save_pretrained(mine, tmp_path / "m", tmp_path)
    assert not [
        p.name
        for p in saved.iterdir()
        if b"private-folder" in p.read_bytes() or str(tmp_path).encode() in p.read_bytes()
    ]
    short = "file:reviews.csv?text=review&label=stars&validation=held_out.csv#3f2a9c0d1e2f"
    assert (
        json.loads((saved / "config.json").read_text())["combcomp"]["task"]
        == inspect(saved / "model.safetensors")["config"]["combcomp"]["task"]
        == short
    )
    loaded = combcomp.load(saved)
    assert (loaded.row["task"], loaded.row["family"], loaded.row["teacher"]) == (
        short,
        "./my-bert",
        "./teacher",
    )
    assert all(
        (a == b).all() for a, b in zip(loaded.model.state_dict().values(), model.state_dict().values())
    )
    data = metadata(text := (saved / "README.md").read_text())
    assert (
        not {"license", "base_model", "language"} & {*data}
        and "`reviews.csv`" in text
        and "None was given for the weights. It began as `./my-bert`" in text
    )


# The card


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def tables(card):
    "{first cell: other cells} of every table line"
    return {
        c[0]: c[1:]
        for c in (
            [x.strip() for x in line.strip("| ").split("|")]
            for line in card.splitlines()
            if line.startswith("| ")
        )
    }


NUMBER = r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?"


def ways(v):
    "How a number may be written in a card"
    return {format(v, f) for f in ("g", ",.0f", ".1f", ".2f", ".3f")} | {repr(v), f"{100*v:g}"}


def unfounded(card, rows, extra=()):
    "Numbers in a card that are neither in its rows nor in `extra`; words of the rows, in code spans, are not numbers"
    words = {str(v) for r in rows for v in r.values() if isinstance(v, str)}
    card = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    text = re.sub(r"`([^`]+)`", lambda m: "" if m[1] in words else m[1], card)
    known = {
        w
        for r in rows
        for v in r.values()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
        for w in ways(v)
    }
    known |= {
        w
        for s in Run(methods=rows[0]["methods"], recipe=rows[0]["recipe"]).combination.stages
        for m in s
        for v in dataclasses.asdict(m).values()
        if isinstance(v, (int, float))
        for w in ways(v)
    }
    text = re.sub(r"MiniLM-L6-v2|-l\d-|\bl\d\b|f1\b", "", text)  # names
    return [
        n for n in re.findall(NUMBER, text) if n not in known | {*extra} | {n.replace(",", "") for n in extra}
    ]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    "An outputs folder with the released rows only"
    folder = tmp_path_factory.mktemp("released")
    for name in ("results.csv", "predictions.npz"):
        shutil.copy(REPO / "outputs" / name, folder / name)
    return folder


def test_every_number_of_a_card_is_in_the_rows(released):
    results = load_results(released)
    mine = results.query(
        "size == 'l2' and task == 'supersense' and methods == 'kd,mp,qat' and limit == 1000 and batch_size == 16 and split == 'validation'"
    )
    row = mine.iloc[0].to_dict()
    plain = (
        results.query(
            "size == 'l2' and task == 'supersense' and methods == '' and limit == 1000 and batch_size == 16 and split == 'validation' and seed == 0"
        )
        .iloc[0]
        .to_dict()
    )
    card = model_card.card(row, released)
    of_one, of_all = (interval(bootstrap_scores(t, released).to_numpy()[0]) for t in (mine[:1], mine))
    scores, sizes = (
        tables(card[card.index(h) : card.index("\n## ", card.index(h) + 1)])
        for h in ("## Scores", "## Sizes")
    )
    assert scores["this model"] == [f"{row['score']:.1f}", "{:.1f} to {:.1f}".format(*of_one)]
    assert scores[f"models made like it, mean of {len(mine)} seeds"] == [
        f"{mine['score'].mean():.1f}",
        "{:.1f} to {:.1f}".format(*of_all),
    ]
    assert (
        scores["uncompressed, seed 0"][0] == f"{plain['score']:.1f}"
        and scores["always the commonest answer"][0] == f"{row['majority']:.1f}"
    )
    kinds = ("mb_paper", "mb_packed", "mb_file")
    assert sizes["this model"] == [f"{row[k]:.2f}" for k in kinds] and sizes["without embeddings"] == [
        f"{row[k + '_noemb']:.2f}" for k in kinds
    ]
    assert sizes["uncompressed"] == [f"{plain[k]:.2f}" for k in kinds]
    assert sizes["times smaller"] == [f"{plain[k]/row[k]:.2f}" for k in kinds]
    extra = [
        "95",
        "100",
        "3.0",
        f"{len(mine)}",
        f"{mine['score'].mean():.1f}",
        *(f"{v:.1f}" for v in (*of_one, *of_all)),
        *sizes["times smaller"],
    ]
    assert unfounded(card, [row, plain], extra) == []
    assert metadata(card)["model-index"][0]["results"][0]["metrics"] == [
        dict(type="accuracy", value=row["accuracy"])
    ]
    assert unfounded(card.replace(f"{row['mb_file']:.2f}", "13.99", 1), [row, plain], extra) == [
        "13.99"
    ], "a wrong number is found"


def test_intervals(released, tmp_path):
    results = load_results(released)
    mine = results.query(
        "size == 'l2' and task == 'supersense' and methods == 'qat' and limit == 1000 and batch_size == 16 and split == 'validation'"
    )
    row, draws = mine.iloc[0].to_dict(), bootstrap_scores(mine, released, n=200)
    line = tables(model_card.card(row, released, draws=draws))[
        f"models made like it, mean of {len(mine)} seeds"
    ]
    assert line[1] == "{:.1f} to {:.1f}".format(
        *interval(draws.to_numpy()[0])
    ), "draws that are given are used"
    with pytest.raises(ValueError, match="the draws have none for minilm, supersense, l2, qat"):
        model_card.card(
            row,
            released,
            draws=bootstrap_scores(
                results.query(
                    "task == 'accept' and methods == 'qat' and size == 'l2' and limit == 1000 and batch_size == 16 and split == 'validation'"
                ),
                released,
                n=9,
            ),
        )
    alone = model_card.card(row, tmp_path)
    assert (
        "There is no interval" in alone
        and " to " not in alone.split("## Scores")[1].split("Score is")[0]
        and "uncompressed" not in tables(alone)
    )


def test_cards_of_released_rows(released):
    "One of every task, and one of every combination of methods"
    results = load_results(released)
    kinds = results.assign(kind=results["methods"].str.replace(r"\(.*?\)", "", regex=True))
    for _, row in pd.concat([kinds.drop_duplicates("task"), kinds.drop_duplicates("kind")]).iterrows():
        data, text = metadata(card := model_card.card(row.to_dict(), released)), card.split("## Limits")[1]
        assert (data["license"], data["language"], data["library_name"], data["pipeline_tag"]) == (
            "apache-2.0",
            "en",
            "combcomp",
            "text-classification",
        )
        assert (
            data["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
            and data["model-index"][0]["results"][0]["dataset"]["name"] == row["task"]
        )
        used = {type(m).__name__ for stage in parse(row["methods"]) for m in stage}
        assert {
            k
            for k, w in dict(
                KD="*distillation*",
                MP="*magnitude pruning*",
                QAT="*quantization-aware training*",
                PTQ="*post-training quantization*",
                Vocab="*vocabulary trimming*",
            ).items()
            if w in text
        } == used
        assert ("Its answer is a number" in card) == (
            row["metric"] == "pearson"
        ) and "nan" not in card.lower().replace("finance", "")
        part = not np.isnan(row["limit"]) and f"{row['limit']:,.0f}" or "whole"
        assert part in text


def test_latency_and_no_use(row, tmp_path):
    fast = model_card.card(
        dict(
            row,
            score=80.0,
            mb_onnx=14.5,
            mb_onnx_noemb=2.5,
            ms_torch=4.25,
            ms_onnx=1.5,
            ms_openvino=None,
            speed_threads=2,
            device="a CPU",
        ),
        tmp_path,
    )
    assert (
        "takes PyTorch 4.25 ms, ONNX Runtime 1.50 ms, 2 thread(s) of `a CPU`" in fast
        and "OpenVINO " not in fast.split("## Sizes")[1].split("## Limits")[0]
    )
    assert tables(fast)["without embeddings"][-1] == "2.50" and "of no use" not in fast
    slow = model_card.card(dict(row, score=row["majority"]), tmp_path)
    assert "of no use" in slow and "Runtime 1" not in slow and "| ONNX |" not in slow


HOSTILE = [
    "<script>alert(1)</script>",
    "</code></td><img src=x onerror=alert(1)>",
    "a`b``c```d",
    "`",
    "[x](javascript:alert(1))",
    "![x](http://a.b/c.png)",
    "a | b | c",
    "one\n\n# two\n---\nthree: [four",
    "\n```\nfive\n```\n",
    "*six* __seven__ ~~eight~~",
    "https://nine.example www.ten.example",
    "eleven\u202etwelve\u200b",
    "'\"\\{{ x }}{% y %}",
    "- &amp; &#60;b&#62;",
]


def structure(card):
    "The tags that a card becomes, and its text"
    import mistune

    html = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url"])(
        card.split("---\n", 2)[2]
    )
    return re.findall(r"<(/?\w+)", html), re.findall(r"<(?:a|img|script)\b[^>]*>", html)


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words(words, row, tmp_path):
    "Names of files, labels and machines do nothing in Markdown, HTML or YAML"

    def made(w):
        return model_card.card(
            dict(row, task=f"file:folder/{w}.csv", device=w, commit=w + "x"),
            tmp_path,
            labels=[w, "b"],
            license=w,
        )

    tags, links = structure(card := made(words))
    assert links == [] and tags == structure(made("plain"))[0] and tags.count("h1") == 1
    data = metadata(card)
    assert data["library_name"] == "combcomp" and data["license"] == model_card.one_line(words)
    name = data["model-index"][0]["results"][0]["dataset"]["name"]
    assert (name.endswith(".csv") or {*words} & {*"?#"}) and name.isprintable()
    assert card.count("\n---\n") == 1 and "folder" not in data["model-index"][0]["name"]


@settings(max_examples=60, deadline=None)
@given(words=st.text(min_size=1, max_size=40))
def test_any_words(words):
    code = model_card.code_span(words)
    ticks = re.match("`+", code)[0]
    assert (
        "\n" not in code
        and code.isprintable()
        and code.endswith(ticks)
        and not re.search(rf"(?<!`){ticks}(?!`)", code[len(ticks) : -len(ticks)])
    )
    import mistune

    html = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url"])(f"a {code} b")
    assert re.findall(r"<(/?\w+)", html) == ["p", "code", "/code", "/p"]


def snippet(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def test_the_snippet_runs(saved, run_py):
    code = snippet(saved)
    assert (
        code == 'import combcomp\nprint(combcomp.load("shipped").predict("a tall tree with edible nuts"))\n'
    )
    (answer,) = eval(run_py(f"import combcomp, os; os.chdir({str(saved.parent)!r})\n{code}").splitlines()[-1])
    assert answer == combcomp.load(saved).predict("a tall tree with edible nuts")[0]


# What comes from elsewhere


def test_damaged_folders(folder, logits, tmp_path):
    model = (folder / "model.safetensors").read_bytes()
    for cut in (0, 7, 100, len(model) // 2, len(model) - 1):
        (folder / "model.safetensors").write_bytes(model[:cut])
        with pytest.raises(CorruptFile):
            combcomp.load(folder)
    changed = bytearray(model)
    changed[-1000] ^= 1
    (folder / "model.safetensors").write_bytes(changed)
    with pytest.raises(CorruptFile):
        combcomp.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors"):
        combcomp.load(folder)
    (folder / "model.safetensors").write_bytes(model)
    assert np.array_equal(combcomp.load(folder).logits(TEXTS), logits)


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"hidden_size": 768}'),
        ("config.json", '{"id2label": {"0": "good", "1": "bad"}}'),
        ("row.json", '{"id": "0000000000000000", "max_length": 3}'),
        ("row.json", "../../etc/passwd"),
        ("row.json", "[" * 100_000),
    ],
)
def test_what_contradicts_the_model_is_ignored(name, text, folder, logits):
    (folder / name).write_text(text)
    with pytest.warns(UserWarning, match=f"{name}.* ignored"):
        loaded = combcomp.load(folder)
    assert np.array_equal(loaded.logits(TEXTS), logits) and loaded.about["labels"] == [
        "swapped",
        "acceptable",
    ]
    assert (loaded.row is None) == (name == "row.json")


@pytest.mark.parametrize("max_length", [1, 10**6, -5, "128", None, 128.5, True, [128]])
def test_a_row_cannot_name_an_impossible_length(max_length, folder, row, logits):
    (folder / "row.json").write_text(json.dumps(dict(row, max_length=max_length)))
    assert np.array_equal(combcomp.load(folder).logits(TEXTS), logits)


def test_tokenizers(folder, tmp_path):
    whole = (folder / "tokenizer.json").read_text()
    for text in ("", "{}", whole[:1000], "[1]"):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="tokenizer in .*folder is damaged"):
            combcomp.load(folder)
    (folder / "tokenizer.json").unlink()  # without it, transformers makes one that knows no words
    with pytest.raises(FileNotFoundError, match="holds no tokenizer.json"):
        combcomp.load(folder)
    other = json.loads(whole)
    other["model"]["vocab"] |= {f"word{i}": 30522 + i for i in range(9)}
    (folder / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="30531 tokens, but the model has embeddings for 30522"):
        combcomp.load(folder)
    (folder / "tokenizer.json").write_text(whole)
    (folder / "config.json").unlink()
    (folder / "row.json").unlink()
    assert combcomp.load(folder).row is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_large_side_file_is_not_read(name, folder):
    (folder / name).touch()
    os.truncate(folder / name, 3 * 10**9)  # takes no space on disk
    with pytest.raises(ValueError, match=f"{name} has 3,000 MB; such a file has at most 64"):
        combcomp.load(folder)


@pytest.mark.parametrize("name", ["config.json", "row.json"])
def test_a_large_json_file_is_ignored(name, folder, logits):
    os.truncate(folder / name, 3 * 10**9)
    with pytest.warns(UserWarning, match=f"{name}.* ignored"):
        assert np.array_equal(combcomp.load(folder).logits(TEXTS), logits)


def test_no_code_of_a_folder_runs(folder, logits, tmp_path, monkeypatch):
    "auto_map names code beside the model; it stays there, and nobody is asked"
    (folder / "evil.py").write_text(
        f"open({str(tmp_path/'ran')!r}, 'w')\nclass Tok: pass\nclass Model: pass\n"
    )
    for name, extra in (
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}}),
        (
            "config.json",
            {"auto_map": {"AutoConfig": "evil.Tok", "AutoTokenizer": "evil.Tok", "AutoModel": "evil.Model"}},
        ),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | extra))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked for consent"))
    assert np.array_equal(combcomp.load(folder).logits(TEXTS), logits) and not (tmp_path / "ran").exists()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "evil.Tok", "auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}})
    )
    try:
        combcomp.load(folder)
    except ValueError:
        pass
    assert not (tmp_path / "ran").exists()


def test_names(saved, tmp_path):
    for name in (
        "nowhere",
        tmp_path / "a" / "b",
        "/no/such/folder",
        "a/b/c",
        "../a",
        "",
        "me/..",
        "https://a.b/c",
    ):
        with pytest.raises((FileNotFoundError, CorruptFile)):
            combcomp.load(name)
    with pytest.raises(ValueError, match="revision"):
        combcomp.load(saved, revision="main")
    with pytest.raises(ValueError, match="repo_id"):
        combcomp.push_to_hub(saved, "../x/y")


def test_only_what_is_known_is_uploaded(folder, tmp_path):
    (place := tmp_path / "place").mkdir()
    (folder / "secret.txt").write_text("mine")
    (folder / "more").mkdir()
    hub.stage_upload(folder, place, "me/model")
    assert {p.name for p in place.iterdir()} == {p.name for p in folder.iterdir()} - {"secret.txt", "more"}
    (tmp_path / "key").write_text("a key")
    (folder / "row.json").unlink()
    (folder / "row.json").symlink_to(tmp_path / "key")
    with pytest.raises(ValueError, match="row.json in .* is a link"):
        combcomp.push_to_hub(folder, "me/model")
    for name in ("README.md", "model.safetensors"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"holds no {name}"):
            combcomp.push_to_hub(folder, "me/model")


# A hub of our own


class Hub(ThreadingHTTPServer):
    "As much of the hub's protocol as it takes to keep models and give them back; bearers of `good` may write and see what is private"

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Asked)
        self.repos, self.large, self.log = (
            {},
            {},
            [],
        )  # name -> dict(private, commits: {sha: {path: bytes}}, head), sha256 -> bytes, (method, path, host, bearer)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit(self, name, files):
        sha = hashlib.sha1(
            repr(sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())).encode()
        ).hexdigest()
        self.repos[name]["commits"][sha], self.repos[name]["head"] = files, sha
        return sha


class Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *a):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while n := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(n))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def say(self, code, value=b"", **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for k, v in {
            "Content-Length": len(data),
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer(self):
        hub, path, body = self.server, self.path.split("?")[0], self.body()
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.log.append((self.command, path, self.headers["Host"], bearer))
        if path == "/":
            return self.say(200)
        if re.match(r"/(?:api/models/)?me/proxy\b", path):
            return self.say(200, b"<html>Please log in</html>", Content_Type="text/html")
        if m := re.match(r"/(?:api/models/)?me/(broken|secret|none)\b", path):
            return self.say(
                {"broken": 500, "secret": 401, "none": 404}[m[1]],
                {"error": "no"},
                **({"X_Error_Code": "RepoNotFound"} if m[1] == "none" else {}),
            )
        if path.startswith("/large/"):
            return self.keep(path[7:], body)
        if path == "/api/validate-yaml":
            return self.say(
                200,
                dict(
                    errors=[],
                    warnings=(
                        []
                        if yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
                        else [dict(message="empty")]
                    ),
                ),
            )
        if bearer != "good" and self.command == "POST":
            return self.say(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if m := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/(preupload|commit)/main", path):
            return getattr(self, m[2])(m[1], body)
        if m := re.fullmatch(r"/([\w-]+/[\w-]+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if m := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/(revision|tree)/(.+))?", path):
            return self.about(bearer, *m.groups())
        if m := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*m.groups())
        self.say(404, {"error": f"{self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        there, _ = name in self.server.repos, self.server.repos.setdefault(
            name, dict(private=asked.get("visibility") == "private", commits={}, head=None)
        )
        if not there:
            self.server.commit(name, {".gitattributes": b"*.safetensors filter=lfs"})
        self.say(409 if there else 200, dict(url=f"{self.server.url}/{name}"))

    def preupload(self, name, body):
        self.say(
            200,
            dict(
                files=[
                    dict(
                        path=f["path"],
                        uploadMode="lfs" if f["path"].endswith(".safetensors") else "regular",
                        shouldIgnore=False,
                    )
                    for f in json.loads(body)["files"]
                ]
            ),
        )

    def batch(self, asked):
        self.say(
            200,
            dict(
                transfer="basic",
                objects=[
                    dict(o, actions=dict(upload=dict(href=f"{self.server.url}/large/{o['oid']}")))
                    for o in asked["objects"]
                ],
            ),
        )

    def keep(self, oid, body):
        if self.command != "PUT":
            return self.say(200, self.server.large[oid], ETag=f'"{oid}"')
        same = hashlib.sha256(body).hexdigest() == oid
        if same:
            self.server.large[oid] = body
        self.say(200 if same else 400)

    def commit(self, name, body):
        files = dict(self.server.repos[name]["commits"][self.server.repos[name]["head"]])
        for line in map(json.loads, body.splitlines()):
            v = line["value"]
            if line["key"] == "file":
                files[v["path"]] = base64.b64decode(v["content"])
            if line["key"] == "lfsFile":
                files[v["path"]] = self.server.large[v["oid"]]
        sha = self.server.commit(name, files)
        self.say(200, dict(commitUrl=f"{self.server.url}/{name}/commit/{sha}", commitOid=sha))

    def about(self, bearer, name, kind, revision):
        repo = self.server.repos.get(name)
        if repo is None or repo["private"] and bearer != "good":
            return self.say(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        sha = repo["head"] if revision in (None, "main") else revision
        if sha not in repo["commits"]:
            return self.say(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        files = repo["commits"][sha]
        if kind != "tree":
            return self.say(
                200,
                dict(
                    id=name,
                    sha=sha,
                    private=repo["private"],
                    tags=[],
                    siblings=[dict(rfilename=f) for f in files],
                ),
            )
        self.say(
            200,
            [
                dict(
                    type="file",
                    path=f,
                    size=len(v),
                    oid=hashlib.sha1(v).hexdigest(),
                    **(
                        {"lfs": dict(oid=hashlib.sha256(v).hexdigest(), size=len(v), pointerSize=1)}
                        if f.endswith(".safetensors")
                        else {}
                    ),
                )
                for f, v in files.items()
            ],
        )

    def resolve(self, name, sha, path):
        data = self.server.repos[name]["commits"].get(sha, {}).get(path)
        if data is None:
            return self.say(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
        if name == "me/cut" and self.command == "GET":
            data, self.close_connection = data[: len(data) // 2], True
        whole = self.server.repos[name]["commits"][sha][path]
        self.say(
            200,
            data,
            X_Repo_Commit=sha,
            ETag=f'"{hashlib.sha256(whole).hexdigest()}"',
            Content_Length=len(whole),
        )


@pytest.fixture(scope="module")
def server():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


LOOPBACK = """
import sys, json, warnings
def only_loopback(event, args):
    host = args[0] if event == "socket.getaddrinfo" else args[1][0] if event == "socket.connect" and isinstance(args[1], tuple) else "127.0.0.1"
    if host not in ("127.0.0.1", b"127.0.0.1"): print("LEFT THE MACHINE", event, args[:2]); raise OSError("only loopback")
sys.addaudithook(only_loopback)
import combcomp
def told(f, *a, **k):
    try: return dict(got=str(f(*a, **k)))
    except Exception as e: return dict(error=type(e).__name__, os=isinstance(e, OSError), connection=isinstance(e, ConnectionError), message=str(e))
"""


def in_a_fresh_process(run_py, code, endpoint, home, **env):
    "Run code against an endpoint, with nobody's token and no proxy; what it prints last, and nothing went anywhere else"
    quiet = dict.fromkeys(
        (
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_OFFLINE",
        ),
        "",
    )
    printed = run_py(
        LOOPBACK + code,
        **quiet,
        HF_ENDPOINT=endpoint,
        HF_HOME=home,
        HF_HUB_DISABLE_XET=1,
        HF_HUB_DISABLE_TELEMETRY=1,
        HF_HUB_DISABLE_PROGRESS_BARS=1,
        PYTHONWARNINGS="ignore",
        **env,
    )
    assert "LEFT THE MACHINE" not in printed
    return json.loads(printed.splitlines()[-1])


SESSION = """
folder, public, texts = json.loads({!r})
texts = [tuple(t) if isinstance(t, list) else t for t in texts]
found = dict(refused=told(combcomp.push_to_hub, folder, "me/model", token="bad"), url=combcomp.push_to_hub(folder, "me/model", token="good"))
found["again"] = combcomp.push_to_hub(folder, "me/model", token="good", message="once more")
found["public"] = told(combcomp.push_to_hub, folder, "me/public", token="good")
found["without a token"] = told(combcomp.load, "me/model")
import os; os.environ["HF_TOKEN"] = "good"
loaded = combcomp.load("me/model")
found |= dict(row=loaded.row, logits=loaded.logits(texts).tolist())
found |= {{name: told(combcomp.load, name) for name in ("me/broken", "me/secret", "me/none", "me/no-model", "me/proxy")}}
found["revision"] = told(combcomp.load, "me/model", revision="v9")
found["commit"] = told(combcomp.load, "me/model", revision=public)
found["broken push"] = told(combcomp.push_to_hub, folder, "me/broken", token="good")
with warnings.catch_warnings(record=True) as w:
    warnings.simplefilter("always")
    found["evil"] = dict(logits=combcomp.load("me/evil").logits(texts).tolist(), warned=[str(x.message) for x in w])
found["damaged"] = told(combcomp.load, "me/damaged")
found["cut"] = told(combcomp.load, "me/cut")
print(json.dumps(found))
"""

OFFLINE = """
from pathlib import Path
found = dict(cached=combcomp.load("me/model").predict("a tall tree with edible nuts"), other=told(combcomp.load, "me/other"))
import contextlib, io, re
head = (Path({!r})/"hub"/"models--me--model"/"refs"/"main").read_text()
(card,) = Path({!r}).rglob(f"models--me--model/snapshots/{{head}}/README.md")
code, said = re.search(r"```python\\n(.*?)```", card.read_text(), re.DOTALL)[1], io.StringIO()
with contextlib.redirect_stdout(said): exec(code)
found |= dict(code=code, said=said.getvalue(), push=told(combcomp.push_to_hub, {!r}, "me/model"))
print(json.dumps(found))
"""


def test_there_and_back(server, saved, logits, row, run_py, tmp_path):
    "Push, load, refusals and hostile listings, in a fresh process that knows this server as the hub; then the same with the server gone"
    files = {p.name: p.read_bytes() for p in saved.iterdir()}

    def publish(name, files):
        server.repos[name] = dict(private=False, commits={}, head=None)
        return server.commit(name, files)

    publish("me/public", {"README.md": b"# there"})
    publish("me/no-model", {"README.md": b"# only this"})
    publish("me/damaged", files | {"model.safetensors": files["model.safetensors"][:-9]})
    settings = json.loads(files["tokenizer_config.json"]) | {
        "auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}
    }
    publish(
        "me/evil",
        files
        | {
            "tokenizer_config.json": json.dumps(settings).encode(),
            "evil.py": b"open('ran', 'w')",
            "row.json": b"../../../../../key",  # a link, as git keeps it
            "../outside.txt": b"x",
            "/absolute.txt": b"x",
            "a/../../up.txt": b"x",
            "tokenizer.json/../../config.json": b"{}",
            "..\\\\windows.txt": b"x",
            "more/model.safetensors": b"x",
        },
    )
    publish("me/cut", files)
    pinned = server.commit("me/public", {"README.md": b"# later"})
    home = tmp_path / "home"
    home.mkdir()
    before = {*tmp_path.rglob("*")}
    texts = [list(t) if isinstance(t, tuple) else t for t in TEXTS]
    found = in_a_fresh_process(
        run_py, SESSION.format(json.dumps([str(saved), pinned, texts])), server.url, home
    )

    assert (
        found["url"] == found["again"] == f"{server.url}/me/model"
        and server.repos["me/model"]["private"]
        and len(server.repos["me/model"]["commits"]) == 2
    )
    kept = server.repos["me/model"]["commits"][server.repos["me/model"]["head"]]
    assert {k: v for k, v in kept.items() if k not in (".gitattributes", "README.md")} == {
        k: v for k, v in files.items() if k != "README.md"
    }
    assert (
        kept["README.md"]
        == files["README.md"].replace(b'load("shipped")', b'load("me/model")')
        != files["README.md"]
    )
    assert found["row"] == row and np.array_equal(
        np.array(found["logits"], np.float32), logits
    ), "bit for bit"
    says = (
        lambda key, *words, connection=False: (f := found[key])["os"]
        and f["connection"] == connection
        and all(w in f["message"] for w in words)
    )
    assert says("refused", "push_to_hub me/model", "401", "hf auth login", "HF_TOKEN") and says(
        "without a token", "load me/model", "401", "hf auth login"
    )
    assert (
        found["public"]["error"] == "ValueError"
        and "private=False" in found["public"]["message"]
        and {*server.repos["me/public"]["commits"][pinned]} == {"README.md"}
    )
    assert (
        says("me/secret", "401", "check the name")
        and says("me/none", "404", "check the name")
        and says("revision", "404", "revision")
    )
    assert says("me/broken", "500", connection=True) and says("broken push", "500", connection=True)
    assert says("me/proxy", "what answers is not the hub", "HF_ENDPOINT", connection=True)
    assert says("cut", "the connection to the hub failed", connection=True)
    assert (
        says("me/no-model", "holds no model.safetensors")
        and found["damaged"]["error"] == "CorruptFile"
        and says("commit", "404")
    )

    assert np.array_equal(np.array(found["evil"]["logits"], np.float32), logits) and any(
        "row.json" in w for w in found["evil"]["warned"]
    )
    asked = {p.split("/", 5)[-1] for _, p, _, _ in server.log if p.startswith("/me/evil/resolve/")}
    assert asked == {*files}, "nothing else was fetched"
    assert (
        not [p for p in tmp_path.rglob("*") if p not in before and home not in p.parents]
        and not [*tmp_path.rglob("ran")]
        and not [*tmp_path.rglob("evil.py")]
    )
    assert {host for _, _, host, _ in server.log} == {f"127.0.0.1:{server.server_port}"}
    assert {b for m, p, _, b in server.log if p.startswith("/large/")} <= {"", "good"} and {
        b for _, _, _, b in server.log
    } <= {"", "good", "bad"}

    gone = in_a_fresh_process(
        run_py, OFFLINE.format(str(home), str(home), str(saved)), "http://127.0.0.1:1", home
    )
    assert gone["cached"] == combcomp.load(saved).predict("a tall tree with edible nuts")
    assert 'load("me/model")' in gone["code"] and gone["said"].strip() == str(gone["cached"])
    assert (
        gone["other"]["connection"]
        and "Ways out" in gone["other"]["message"]
        and "a folder that save_pretrained wrote" in gone["other"]["message"]
    )
    assert gone["push"]["connection"] and "try again with a network" in gone["push"]["message"]
