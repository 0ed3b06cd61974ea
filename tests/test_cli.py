"The command line: the same options as the notebooks, real small runs, exit codes, and what happens when it is interrupted, unread or given nonsense"

import ast, configparser, io, json, os, re, shlex, shutil, signal, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from inspect import Parameter

import papermill, pytest

from combcomp import Run, __version__, cli
from combcomp.ship.packed_file import inspect
from combcomp.study.store import load_results, read_failure, read_row, summary
from conftest import REPO, tiny_family

SMALL = dict(size="l1", task="accept", limit=64, epochs=1.0)
QAT = Run(methods="qat", **SMALL)
STUDY = "--tasks accept --limits 64 --epochs 1 --batch_size 32 --recipe v2"


def command(*words, **kwargs):
    "combcomp in a fresh process"
    return subprocess.run(
        [sys.executable, "-m", "combcomp", *map(str, words)],
        cwd=REPO,
        text=True,
        capture_output=True,
        **kwargs,
    )


def do(line, *more):
    "combcomp in this process: exit code, standard output, standard error"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main([*shlex.split(line), *map(str, more)])
    return code, out.getvalue(), err.getvalue()


def refused(line, *more):
    "The one line on standard error with which a command line is refused"
    code, out, err = do(line, *more)
    ours = [
        l for l in err.splitlines() if l.startswith("combcomp: ")
    ]  # torch warns of itself when it is loaded
    assert (
        code == 2 and out == "" and len(ours) == 1 and err.endswith(f"{ours[0]}\n") and "Traceback" not in err
    ), (code, out, err)
    return ours[0]


@pytest.fixture(scope="module")
def made(cache, tmp_path_factory):
    "An outputs folder with a run and its uncompressed counterpart, made in a fresh process"
    out = tmp_path_factory.mktemp("cli") / "out"
    shutil.copytree(cache, out / "cache")
    done = command(
        "run",
        "--json",
        "--methods",
        "qat",
        *(x for k, v in SMALL.items() for x in (f"--{k}", v)),
        "--outputs",
        out,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done


# One source of names, types, defaults and help


def parameters(path):
    "The parameters of a notebook as papermill reads them"
    return {
        k: (p["inferred_type_name"], ast.literal_eval(p["default"]), p["help"])
        for k, p in papermill.inspect_notebook(str(path)).items()
    }


def said(table):
    return {k: (o.type.__name__, o.default, o.help) for k, o in table.items()}


@pytest.mark.parametrize("name, table", [("run", cli.RUN), ("grid", cli.GRID), ("smallest", cli.SMALLEST)])
def test_notebooks_have_the_options_of_the_command_line(name, table, tmp_path):
    path = REPO / "nbs" / f"{name}.ipynb"
    assert parameters(path) == said(table)
    if name == "smallest":
        return
    text = path.read_text(encoding="utf-8")
    for old, new in (
        ("# passes over", "# turns over"),
        ("batch_size: int = 32", "batch_size: int = 33"),
        ("epochs: float", "epochs: int"),
        ("outputs: str", "output: str"),
    ):
        assert old in text
        (tmp_path / "other.ipynb").write_text(text.replace(old, new), encoding="utf-8")
        assert parameters(tmp_path / "other.ipynb") != said(table)


def test_the_options_of_run_are_the_fields_of_run():
    assert {f.name: f.default for f in fields(Run)} | dict(methods="kd,qat") == {
        k: cli.RUN[k].default for k in Run.__dataclass_fields__
    }
    assert [*cli.RUN] == [*Run.__dataclass_fields__, "measure", "report_to", "force", "outputs"]


def test_the_study_of_recommend_is_that_of_findings():
    findings, table = parameters(REPO / "nbs" / "findings.ipynb"), said(cli.COMMANDS["recommend"].options)
    for name in ("family", "tasks", "limits", "batch_size"):
        assert table[name] == findings[name]


def test_what_two_commands_share_they_call_the_same():
    tables = [c.options for c in cli.COMMANDS.values()]
    assert all(o.help and o.type in (str, int, float, bool) for t in tables for o in t.values())
    for name in ("family", "epochs", "batch_size", "measure", "report_to", "outputs"):
        assert said(cli.RUN)[name] == said(cli.GRID)[name]
    assert len({t["outputs"].help for t in tables if "outputs" in t}) == 1


def test_defaults_reach_the_command():
    for name, command in cli.COMMANDS.items():
        table = command.options
        needed = [
            w
            for k, o in table.items()
            if o.default is Parameter.empty
            for w in (["-o", "x"] if k == "out" else ["x"])
        ]
        given = cli.parse([name, *needed])
        assert {k: given[k] for k, o in table.items() if o.default is not Parameter.empty} == {
            k: o.default for k, o in table.items() if o.default is not Parameter.empty
        }


def test_the_script_is_installed_under_its_name(tmp_path):
    pytest.importorskip("setuptools")
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(REPO / "settings.ini", encoding="utf-8")
    assert ini["DEFAULT"]["console_scripts"] == "combcomp=combcomp.cli:main" and callable(cli.main)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    (entry,) = tmp_path.glob("*.egg-info/entry_points.txt")
    assert done.returncode == 0 and entry.read_text().split() == [
        "[console_scripts]",
        "combcomp",
        "=",
        "combcomp.cli:main",
    ]


# Help


def test_help_loads_nothing(run_py):
    heavy = "{m for m in ('torch', 'transformers', 'datasets', 'numpy', 'pandas', 'matplotlib', 'scipy') if m in sys.modules}"
    calls = "; ".join(f"main(['{c}', '--help'])" for c in cli.COMMANDS)
    assert (
        run_py(
            f"import sys\nfrom combcomp.cli import main\nmain(['--help']); {calls}; main(['run', '--size', 'tiny'])\nprint({heavy} or 'light')"
        ).splitlines()[-1]
        == "light"
    )


def test_help_tells_all():
    code, out, _ = do("--help")
    assert (
        code == 0
        and all(re.search(rf"^    {c}\b", out, re.MULTILINE) for c in cli.COMMANDS)
        and all(f"  {k}" in out and v in out for k, v in cli.CODES.items())
    )
    for name, command in cli.COMMANDS.items():
        table = command.options
        code, out, _ = do(f"{name} --help")
        flat = " ".join(out.split())
        for k, o in table.items():
            assert o.help in flat and (f"--{k}" in out or o.default is Parameter.empty)
            assert o.default in (None, "", False, Parameter.empty) or f"(default {o.default})" in flat
        assert code == 0 and f"examples:\n  combcomp {name} " in out


def test_examples_are_understood():
    assert all(c.examples for c in cli.COMMANDS.values())
    for line in (line for c in cli.COMMANDS.values() for line in c.examples):
        program, name, *rest = shlex.split(line)
        given = cli.parse([name, *rest])
        assert program == "combcomp" and given["command"] == name
        if name == "run":
            Run(**{k: given[k] for k in Run.__dataclass_fields__})


def test_version():
    assert do("--version")[:2] == (0, f"combcomp {__version__}\n")


# Real runs


def test_run_prints_one_json_object_and_progress_elsewhere(made):
    out, done = made
    row = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1 and row == read_row(QAT.id, out) and row["limit"] == 64
    assert "minilm l1 accept qat seed 0" in done.stderr and "score" in done.stderr
    assert sorted(p.stem for p in (out / "runs").iterdir()) == sorted([QAT.id, Run(**SMALL).id])


def test_run_says_what_the_notebook_says(made):
    out = made[0]
    code, text, err = do("run qat --size l1 --task accept --limit 64 --epochs 1 --outputs", out)
    rows = {"uncompressed l1": read_row(Run(**SMALL).id, out), "qat l1": read_row(QAT.id, out)}
    assert (
        code == 0
        and text.endswith(f"{summary(rows, out)}\n")
        and do("run --methods qat --size l1 --task accept --limit 64 --epochs 1 --outputs", out)[1] == text
    )
    cells = "\n".join(
        "".join(c["source"])
        for c in json.loads((REPO / "nbs" / "run.ipynb").read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    )
    assert (
        "rows = cli.run_and_compare(cfg, measure, report_to, force, outputs)" in cells
        and "print(cli.conclusion(rows, outputs)" in cells
    )


def test_pack_unpack_and_export(made, tmp_path):
    import torch
    from combcomp import load_exported, unpack

    (out, _), packed, plain = made, tmp_path / "deep" / "small.safetensors", tmp_path / "plain"
    model = out / "models" / f"{QAT.id}.safetensors"
    assert do(f"pack {QAT.id[:7]} -o", packed, "--outputs", out)[0] == 0
    given, written = inspect(model), inspect(packed)
    assert written["bytes"] < given["bytes"]  # biases are coded
    for same in ("config", "info", "inputs", "tokenizer"):
        assert written[same] == given[same], same
    weights = unpack(packed).state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in unpack(model).state_dict().items())
    code, text, _ = do(f"unpack {packed} -o", plain, "--outputs", out)
    assert (
        code == 0
        and "quantize their input" in text
        and {p.name for p in plain.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    )
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded, tokenizer = AutoModelForSequenceClassification.from_pretrained(
        plain
    ), AutoTokenizer.from_pretrained(plain)
    original = unpack(model)
    assert (
        type(loaded) is type(original)
        and all(torch.equal(v, original.state_dict()[k]) for k, v in loaded.state_dict().items())
        and len(tokenizer) == loaded.config.vocab_size
    )
    code, text, _ = do(f"pack {plain} --json -o", tmp_path / "again.safetensors")
    assert (
        code == 0
        and json.loads(text)["labels"] == ["swapped", "acceptable"]
        and all(
            torch.equal(v, original.state_dict()[k])
            for k, v in unpack(tmp_path / "again.safetensors").state_dict().items()
        )
    )
    for runtime in ("onnx", "openvino"):
        pytest.importorskip(dict(onnx="onnxruntime").get(runtime, runtime))
        pytest.importorskip("onnx")
        code, text, err = do(
            f"export {Run(**SMALL).id[:7]} --runtime {runtime} --json -o",
            tmp_path / runtime,
            "--outputs",
            out,
        )
        about = json.loads(text)
        assert (
            code == 0
            and about["runtime"] == runtime
            and about["parity"]["examples"] == 1000
            and about["parity"]["equal"] >= 0.99
        ), err
        assert load_exported(tmp_path / runtime).predict(["a tree"])[0]["label"] in about["labels"]
    assert "overwrite it with --force" in refused(f"export {QAT.id} -o", tmp_path / "onnx", "--outputs", out)
    assert "not an earlier export" in refused(f"export {QAT.id} --force -o", plain, "--outputs", out)
    assert (
        do(f"export {packed} --runtime onnx --task none --force -o", tmp_path / "onnx", "--outputs", out)[0]
        == 0
        and load_exported(tmp_path / "onnx").about["parity"] is None
    )


def test_nothing_is_overwritten_without_force(made, tmp_path):
    out, taken = made[0], tmp_path / "taken"
    taken.write_text("mine")
    assert (
        "overwrite it with --force" in refused(f"pack {QAT.id} -o", taken, "--outputs", out)
        and taken.read_text() == "mine"
    )
    assert "is a file" in refused(
        f"unpack {QAT.id} --force -o", taken, "--outputs", out
    ) and "is a folder" in refused(f"pack {QAT.id} --force -o", tmp_path, "--outputs", out)
    assert "overwrite it with --force" in refused(f"unpack {QAT.id} -o", tmp_path, "--outputs", out)
    assert (
        do(f"unpack {QAT.id} --force -o", tmp_path, "--outputs", out)[0] == 0
        and taken.read_text() == "mine"
        and (tmp_path / "config.json").is_file()
    )
    assert do(f"pack {QAT.id} --force -o", taken, "--outputs", out)[0] == 0
    assert inspect(taken)["config"]["combcomp"]["run"] == QAT.id
    assert not [p for p in tmp_path.iterdir() if p.is_dir()], "nothing passing is left"


def test_what_a_name_may_be(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made[0] / "models", out / "models")
    shutil.copy(
        out / "models" / f"{QAT.id}.safetensors", out / "models" / f"{QAT.id[:6]}0123456789.safetensors"
    )
    assert "begins the ids of 2 models" in refused(f"pack {QAT.id[:6]} -o", tmp_path / "x", "--outputs", out)
    for name in ("", "*", "../models", "zz", QAT.id.upper()):
        assert "is not a file" in refused("unpack", name, "-o", tmp_path / "x", "--outputs", out)
    released = load_results()["id"][0]
    assert (
        REPO / "outputs" / "models" / f"{released}.safetensors"
    ).is_file() or "has a row, and its model is not here" in refused(f"pack {released} -o", tmp_path / "x")


def test_folders_that_are_no_classifier(tmp_path):
    import torch
    from transformers import (
        AlbertConfig,
        AlbertForSequenceClassification,
        BertConfig,
        BertForSequenceClassification,
        BertModel,
    )

    tiny = dict(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    AlbertForSequenceClassification(AlbertConfig(**tiny)).save_pretrained(tmp_path / "albert")
    BertModel(BertConfig(**tiny)).save_pretrained(tmp_path / "headless")
    model = BertForSequenceClassification(BertConfig(**tiny))
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "empty").mkdir()
    for name, why in (
        (
            "albert",
            "pack: folder='albert' is not allowed; folder is an encoder of one of the supported types",
        ),
        ("headless", "no fine-tuned classifier"),
        ("empty", "no config.json"),
    ):
        assert why in refused(f"pack {tmp_path/name} -o", tmp_path / "x")
    code, _, err = do(f"pack {tmp_path/'pickled'} -o", tmp_path / "x")
    assert code == 2 and "safetensors" in err and not (tmp_path / "x").exists()


def test_grid(made, tmp_path):
    out = made[0]
    words = (
        f"grid --sizes l1 --tasks accept --limits 64 --epochs 1 --methods 'none; qat; ptq' --outputs {out}"
    )
    code, text, _ = do(f"{words} --dry-run")
    assert (
        code == 0
        and "3 runs, 2 done; 1 to make" in text
        and "ptq" not in text
        and not (out / "failures").exists()
    )
    code, text, err = do(f"{words} --json")
    assert code == 0 and [r["methods"] for r in json.loads(text)] == ["", "qat", "ptq"] and "[3/3]" in err
    assert json.loads(text)[1] == {
        k: None if v != v else v
        for k, v in ({c: None for c in json.loads(text)[1]} | read_row(QAT.id, out)).items()
    }
    code, text, _ = do(words)
    assert code == 0 and re.search(r"accept +l1( +\d+\.\d){3}", text)


def test_failed_runs_end_in_one(tmp_path):
    (tmp_path / "empty").mkdir()
    code, text, err = do(
        f"grid --family {tmp_path/'empty'} --tasks accept --methods 'none; mp' --limits 64 --epochs 1 --json --outputs",
        tmp_path / "out",
    )
    assert (
        (code, json.loads(text)) == (1, [])
        and "2 of 2 runs were not made; --retry_failed tries" in err
        and read_failure(
            Run(family=str(tmp_path / "empty"), size="full", task="accept", limit=64, epochs=1.0).id,
            tmp_path / "out",
        )
    )
    code, text, err = do(f"run none --family {tmp_path/'empty'} --size full --outputs", tmp_path / "out")
    assert code == 2 and "empty" in err.splitlines()[-1] and "Traceback" not in err
    code, text, err = do(
        f"run none --family {tmp_path/'empty'} --size full --debug --outputs", tmp_path / "out"
    )
    assert code == 2 and "Traceback" in err


def test_recommend(made):
    out = made[0]
    code, text, err = do(f"recommend --megabytes 20 {STUDY} --json --outputs", out)
    best = json.loads(text)
    assert (
        code == 0
        and best[0]["methods"] == "qat"
        and best[0]["why"] == "first"
        and best[0]["megabytes"] < 20
        and best[0]["lower"] <= best[0]["score"] <= best[0]["upper"]
    )
    code, text, _ = do(f"recommend --score 1 {STUDY} --outputs", out)
    assert (
        code == 0
        and re.search(r"^ +l1 +none .*dominated|^ +l1 +none .*front", text, re.MULTILINE)
        and "runs of minilm on accept" in text
    )
    assert (
        do(f"recommend --megabytes 1 {STUDY} --json --outputs", out)[:2] == (3, "[]\n")
        and "the nearest of" in do(f"recommend --megabytes 1 {STUDY} --outputs", out)[2]
    )
    assert "give --megabytes, --milliseconds or --score" in refused(
        f"recommend {STUDY} --outputs", out
    ) and "no row has ms_openvino" in refused(f"recommend --milliseconds 5 {STUDY} --outputs", out)
    assert do("recommend --megabytes 14")[0] == 0, "the released rows"
    assert (
        "(64 examples, 1 epoch, batches of 32, recipe v2)"
        in do("recommend --megabytes 20 --tasks accept --outputs", out)[1]
    ), "the only training there is"
    assert "a training that has rows: --limits '64' --epochs 1 --batch_size 32 --recipe 'v2' (" in refused(
        "recommend --megabytes 20 --tasks accept --batch_size 8 --outputs", out
    )


def test_sizes():
    code, text, _ = do("sizes --family bert --json")
    assert code == 0 and [r["size"] for r in json.loads(text)] == [
        "large",
        "base",
        "medium",
        "small",
        "mini",
        "tiny",
    ]
    assert do("sizes")[1].count("\n") == 25 and "did you mean 'bert'" in refused("sizes --family robert")


# Nonsense, damage, and ends


@pytest.mark.parametrize(
    "line, why",
    [
        ("", "required: COMMAND"),
        ("rum", "invalid choice: 'rum'"),
        ("run --sise l1", "did you mean '--size'"),
        ("run --seed x", "invalid int value: 'x'"),
        ("run --size tiny", "--size 'tiny' is not allowed"),
        ("run --methods dk", "method='dk' is not allowed"),
        ("run --measure sped", "did you mean 'speed'"),
        ("run --report_to tensorbord", "did you mean 'tensorboard'"),
        ("run --epochs nan", "--epochs 'nan'"),
        ("run --si l1", "--si"),
        ("grid --limits accept=few", "task:number"),
        ("grid --engine rai", "did you mean 'ray'"),
        ("grid --workers 0", "--workers '0'"),
        ("grid --sizes l9", "size='l9'"),
        ("grid --seeds x", "ints with commas"),
        ("smallest --task acept", "did you mean 'accept'"),
        ("smallest --megabytes 0", "--megabytes '0.0'"),
        ("run kd --methods qat", "given twice"),
        ("run kd --methods=qat", "given twice"),
        ("run qat --task file:none.csv", "there is no file 'none.csv'"),
        ("pack", "required: ID_OR_FOLDER"),
        ("unpack nowhere -o x", "'nowhere' is not a file"),
        ("export nowhere -o x --runtime tensorrt", "--runtime 'tensorrt'"),
        ("recommend --megabytes -1", "is a number above 0"),
        ("sizes bert", "'bert'"),
    ],
)
def test_wrong_usage_is_one_line_and_two(line, why, tmp_path):
    before = sorted(p.name for p in REPO.iterdir())
    assert why in refused(
        line, *(["--outputs", tmp_path / "out"] if line.split(" ")[0] in ("run", "grid", "smallest") else [])
    )
    assert not (tmp_path / "out").exists() and sorted(p.name for p in REPO.iterdir()) == before


def test_damage_is_told_and_ends_in_one(made, tmp_path):
    out = tmp_path / "out"
    for part in ("models", "runs"):
        shutil.copytree(made[0] / part, out / part)
    model, row = out / "models" / f"{QAT.id}.safetensors", out / "runs" / f"{QAT.id}.json"
    data = bytearray(model.read_bytes())
    data[-1000] ^= 1
    model.write_bytes(data)
    for words in (f"pack {QAT.id}", f"unpack {QAT.id}", f"export {QAT.id} --task none"):
        code, text, err = do(f"{words} -o", tmp_path / "x", "--outputs", out)
        assert (
            code == 1
            and text == ""
            and "CorruptFile" in err
            and "checksum" in err
            and err.count("\n") == 1
            and not (tmp_path / "x").exists()
        )
    row.write_text(row.read_text()[:50])
    for words in (
        f"recommend --megabytes 100 {STUDY}",
        "grid --sizes l1 --tasks accept --limits 64 --epochs 1 --methods 'none; qat' --dry_run",
    ):
        code, text, err = do(f"{words} --outputs", out)
        assert (
            code == 0
            and "combcomp: warning: 1 rows in" in err
            and "is not the row of a run" in err
            and "Traceback" not in err
        )
    assert "2 runs, 1 done; 1 to make" in text


def test_a_reader_that_has_gone_is_no_reason_to_complain(tmp_path):
    def unread(line, buffered=True):
        read, write = os.pipe()
        os.close(read)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | (
            {} if buffered else dict(PYTHONUNBUFFERED="1")
        )
        done = subprocess.run(
            [sys.executable, "-m", "combcomp", *line.split()],
            cwd=REPO,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        os.close(write)
        return done.returncode, done.stderr

    assert unread("sizes") == unread("sizes", buffered=False) == unread("--help") == (141, "")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout, redirect_stdout(stdout):
        assert (
            cli.main(f"grid --sizes l1 --tasks accept --limits 65 --outputs {tmp_path/'out'}".split()) == 141
        )
    assert not (tmp_path / "out" / "failures").exists()


def test_output_that_cannot_show_a_character(made, tmp_path, monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert (
        cli.main(["pack", QAT.id, "-o", str(tmp_path / "größe"), "--outputs", str(made[0])]) == 0
        and (tmp_path / "größe").is_file()
    )
    assert rb"gr\xf6\xdfe" in narrow.buffer.getvalue()
    plain = dict(os.environ, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = command("sizes", "--family", "größe", env=plain)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"--family 'gr(\\\w+)+e' is not allowed", done.stderr)


def test_ctrl_c_ends_in_130_and_the_same_command_goes_on(out):
    few = dict(family=tiny_family(), size="l1", task="accept", limit=400, epochs=12.0, outputs=str(out))
    words = ["run", "mp > qat", *(x for k, v in few.items() for x in (f"--{k}", str(v)))]
    del few["outputs"]
    cfg = Run(methods="mp > qat", **few)
    child = subprocess.Popen(
        [sys.executable, "-m", "combcomp", *words],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # what runs in the background of a shell ignores it
    said = ""
    for line in child.stdout:
        said += line
        if "epoch" in line and "stage 2 of 2" in said:
            break  # the libraries of the second stage are there
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert (
        child.returncode == 130 and err == f"combcomp: {cli.CODES[130]}\n"
    ), "one line, and none of libraries' own"
    assert (
        read_row(cfg.id, out) is None
        and (out / "cache" / "unfinished" / cfg.id / "stages.safetensors").is_file()
        and not (out / "failures").exists()
    )
    code, text, err = do(shlex.join(words))
    assert (
        code == 0
        and "stage 2 of 2" in text
        and "stage 1 of 2" not in text
        and read_row(cfg.id, out)["methods"] == "mp > qat"
    )


# Labels for a file of texts


def test_predict_labels_a_file(made, tmp_path):
    "By the id of a run, a packed file, a saved folder and an export; the same labels"
    out, texts = made[0], ["a small dog barks", "was runs dog the", "he ran, and she walked"]
    (tmp_path / "new.csv").write_text("page,text\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts)))
    (tmp_path / "new.txt").write_text("\n".join(texts))
    code, text, err = do(f"predict {QAT.id}", tmp_path / "new.csv", "--outputs", out)
    assert code == 0, err
    lines = text.splitlines()
    assert lines[0] == "page,text,predicted,probability" and len(lines) == 4
    exported = do(f"export {QAT.id} --task none -o", tmp_path / "onnx", "--runtime", "onnx", "--outputs", out)
    assert exported[0] == 0, exported[2]
    labels = [line.split(",")[-2] for line in lines[1:]]
    for model in (QAT.id[:9], out / "models" / f"{QAT.id}.safetensors", tmp_path / "onnx"):
        file = tmp_path / f"{len(str(model))}.csv"
        code, text, err = do("predict", model, tmp_path / "new.txt", "-o", file, "--outputs", out)
        assert code == 0 and "3 texts" in text, err
        assert [line.split(",")[-2] for line in file.read_text().splitlines()[1:]] == labels
    rows = json.loads(do(f"predict {QAT.id} --json", tmp_path / "new.csv", "--outputs", out)[1])
    assert [r["predicted"] for r in rows] == labels and all(0.5 <= r["probability"] <= 1 for r in rows)


def test_predict_says_what_is_wrong_with_a_file(made, tmp_path):
    out = made[0]
    (tmp_path / "gap.csv").write_text("text,page\nfirst one,1\n,2\n")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n3,4\n")
    for name, words, why in (
        ("gap.csv", [], "row 2 has nothing in column 'text'"),
        ("numbers.csv", [], "name them with --text"),
        ("gap.csv", ["--text", "txt"], "did you mean 'text'"),
        ("gap.csv", ["--text", "text,page"], "reads 1 text"),
        ("none.csv", [], "there is no file"),
        ("gap.csv", ["-o", str(tmp_path / "numbers.csv")], "exists"),
    ):
        code, text, err = do(f"predict {QAT.id}", tmp_path / name, "--outputs", out, *words)
        assert code == 2 and why in err and not text, err
    code, _, err = do("predict nowhere", tmp_path / "gap.csv", "--outputs", out)
    assert code == 2 and "'nowhere' is not a file" in err


def test_predict_leaves_labels_empty_below_a_threshold(made, tmp_path):
    "Probabilities of every label on request; the others are those of a run without a threshold"
    out = made[0]
    (tmp_path / "new.csv").write_text("text,probability\n" + "a small dog barks,9\nwas runs dog the,8\n" * 9)
    line = f"predict {QAT.id} --json --outputs {out}"
    plain = json.loads(do(line, tmp_path / "new.csv")[1])
    cut = sum(r["probability"] for r in plain) / len(plain)
    rows = json.loads(do(f"{line} --probabilities --threshold {cut}", tmp_path / "new.csv")[1])
    assert {*rows[0]} == {"text", "predicted", "probability", "probability_swapped", "probability_acceptable"}
    assert len({r["probability"] for r in rows}) == 2 and None in {r["predicted"] for r in rows}
    for row, before in zip(rows, plain):
        assert row["probability"] == before["probability"]
        assert row["predicted"] == (before["predicted"] if row["probability"] >= cut else None)
        assert row["probability"] == max(row["probability_swapped"], row["probability_acceptable"])
    written = do(
        f"predict {QAT.id} --threshold 1 -o", tmp_path / "x.csv", tmp_path / "new.csv", "--outputs", out
    )
    assert written[0] == 0 and "18 below 1 and left empty" in written[1]
    assert (tmp_path / "x.csv").read_text().splitlines()[1].startswith("a small dog barks,,0.")
    for wrong in ("1.5", "-0.1", "nan"):
        assert "--threshold" in refused(f"predict {QAT.id} --threshold={wrong}", tmp_path / "new.csv")


def test_a_temperature_from_labelled_texts_and_verify(made, tmp_path):
    "It is stored in a packed file and goes into its export; labels stay, wrong labels are refused"
    from combcomp.ship.packed_file import inspect, unpack
    from combcomp.ship.runtimes import load_about

    out, packed = made[0], tmp_path / "m.safetensors"
    shutil.copy(out / "models" / f"{QAT.id}.safetensors", packed)
    text = ["was runs dog the", "he ran, and she walked", "the cat sat on the mat", "mat the sat on cat"]
    labels = ["swapped", "acceptable", "swapped", "acceptable"]
    lines = [f"{t},{l}" for t, l in zip(text * 10, labels * 5 + ["swapped"] * 20)]
    (tmp_path / "labelled.csv").write_text("\n".join(['text,answer', *(l.replace(", ", " ") for l in lines)]))
    (tmp_path / "new.txt").write_text("\n".join(text))
    before = do(f"predict {packed} --json --outputs {out}", tmp_path / "new.txt")
    line = f"calibrate {packed} --json --label answer --outputs {out} --file"
    code, said, err = do(line, tmp_path / "labelled.csv")
    assert code == 0, err
    found, info = json.loads(said), inspect(packed)["info"]
    assert info["temperature"] == found["temperature"] == unpack(packed).temperature != 1
    assert info["calibration"]["examples"] == 40 and 0 <= found["after"] <= 1
    after = do(f"predict {packed} --json --outputs {out}", tmp_path / "new.txt")
    rows = [json.loads(answer[1]) for answer in (before, after)]
    assert [r["predicted"] for r in rows[0]] == [r["predicted"] for r in rows[1]]
    assert [r["probability"] for r in rows[0]] != [r["probability"] for r in rows[1]]
    (tmp_path / "wrong.csv").write_text("text,answer\n" + "a dog,maybe\na cat,swapped\n" * 20)
    assert "'maybe' is not allowed" in refused(line, tmp_path / "wrong.csv")
    assert "there is no file" in refused(line, tmp_path / "none.csv")
    export = f"export {packed} --runtime onnx --task none --outputs {out} --references 4 -o"
    assert do(export, tmp_path / "served")[0] == 0
    assert load_about(tmp_path / "served")["temperature"] == found["temperature"]
    code, said, _ = do("verify --json", tmp_path / "served")
    assert code == 0 and json.loads(said)["examples"] == json.loads(said)["equal"] == 4
    (tmp_path / "served" / "config.json").write_text("{}")
    code, said, _ = do("verify", tmp_path / "served")
    assert code == 1 and "config.json was edited or damaged" in said and "do not serve it" in said
    assert "export did not write this folder" in refused("verify", tmp_path / "nowhere")


def test_a_run_that_is_evaluated_on_a_held_out_part_has_a_temperature(made):
    from combcomp import run
    from combcomp.ship.packed_file import inspect
    from combcomp.study.runner import model_file

    cfg, said = Run(split="heldout", **SMALL), []
    run(cfg, made[0], log=lambda *a, **k: said.append(a[0]))
    info = inspect(model_file(cfg, made[0]))["info"]
    assert info["temperature"] > 0 and info["calibration"]["examples"] >= 20
    assert any("expected calibration error" in line for line in said)
    assert inspect(model_file(Run(**SMALL), made[0]))["info"] == {}


def test_models_that_are_missing_or_not_supported_are_wrong_usage(tmp_path):
    "Before anything is trained: exit code 2, with the way out"
    for name, kind in (("gpt", "gpt2"), ("bare", "bert")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(dict(model_type=kind)))
    out = f"--limit 20 --size l1 --task accept --outputs {tmp_path}"
    for line, why in (
        (f"run --family {tmp_path}/gpt --size full --outputs {tmp_path}", "'gpt2' is not allowed"),
        (f"run --family {tmp_path}/nowhere --size full --outputs {tmp_path}", "cannot load"),
        (f"run --methods kd --teacher {tmp_path}/gpt {out}", "'gpt2' is not allowed"),
        (f"run --methods kd --teacher {tmp_path}/none.safetensors {out}", "there is no file"),
        (f"pack {tmp_path}/gpt -o {tmp_path}/x.safetensors", "'gpt2'"),
        (f"pack {tmp_path}/bare -o {tmp_path}/x.safetensors", "no weights that can be read"),
    ):
        assert why in refused(line), line
    assert not (tmp_path / "runs").exists()


def test_the_summary_names_a_teacher_of_ones_own(made):
    row = read_row(QAT.id, made[0])
    own = dict(row, teacher="somewhere/mine.safetensors", teacher_score=91.25)
    (line,) = [l for l in summary({"qat l1": own}, made[0]).splitlines() if "mine.safetensors" in l]
    assert line.split()[:3] == ["teacher", "mine.safetensors", "91.2"] and "teacher" not in summary(
        {"qat l1": row}, made[0]
    )
