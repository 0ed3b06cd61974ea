"make hands parameters to papermill as they were typed, and its targets install what they need"

import json, re, shutil, subprocess, sys

import pytest

from conftest import REPO

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
FAKE = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"


def make(folder, *words, **kwargs):
    "Arguments that `make` gives to papermill; `folder` gets a venv that holds a papermill which prints them"
    bin = folder / "bin"
    bin.mkdir(exist_ok=True)
    for program in ("papermill", "combcomp"):
        (bin / program).write_text(FAKE)
        (bin / program).chmod(0o755)
    (bin / "activate").write_text(f'PATH="{bin}:$PATH"\n')
    for stamp in (".ready", ".ready-all"):
        (folder / stamp).touch()
    done = subprocess.run(
        ["make", f"VENV={folder}", *words], cwd=REPO, capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))


def given(words):
    "The last value of each parameter among papermill's arguments"
    return {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}


@pytest.mark.parametrize(
    "value",
    [
        "kd(temperature=4), mp > qat",
        "it's \"quoted\"",
        "$HOME $$x ${y} $(z)",
        "a\\ b\\n `ls`",
        "größer, 例",
        "#1 %.o *",
        "",
        "-x --y=z",
        "two\nlines\n",
        "a\n'$newline'\n\n",
    ],
)
def test_values_arrive_as_they_were_typed(tmp_path, value):
    words = make(tmp_path, "run", f"methods={value}", "size=l1")
    assert given(words) == dict(methods=value, size="l1") and "nbs/run.ipynb" in words


def test_miniatures_are_made_by_the_command(tmp_path):
    words = make(tmp_path, "miniatures", "sizes=2x32,4x96", "texts=wordnet+it's mine.txt", "rate=-1")
    assert words[0] == "miniatures"
    assert {*words[1:]} == {"--sizes=2x32,4x96", "--texts=wordnet+it's mine.txt", "--rate=-1"}
    assert make(tmp_path, "miniatures") == ["miniatures"]


def test_only_what_was_typed_is_a_parameter(tmp_path):
    assert given(make(tmp_path, "grid", env={"PATH": "/usr/bin:/bin", "size": "l2"})) == {}
    assert given(make(tmp_path, "speed")) == dict(measure="all")
    assert given(make(tmp_path, "speed", "measure=inference")) == dict(measure="inference")


def test_every_target_that_needs_more_than_a_run_installs_everything():
    text = (REPO / "Makefile").read_text(encoding="utf-8")
    needs = dict(re.findall(r"^([a-z ]+): \$\((READY|ALL)\)", text, re.MULTILINE))
    whole = {target for target, stamp in needs.items() if stamp == "ALL"}
    assert whole == {"venv", "speed", "test", "site", "zoo"}
    assert {"run", "grid", "smallest", "ablations", "results"} <= {
        target for target, stamp in needs.items() if stamp == "READY"
    }
    assert "pip install -q --no-compile -e '.[demo]'" in text
