"How texts and labels are read: each fault once as it was reported, and its neighbours; nothing is trained"

import datetime, json, os, warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from combcomp import own, Run
from combcomp.basics import outputs_dir
from combcomp.cli import check_free
from combcomp.data.text_files import held_back, load_file_task, own_task, read_columns, read_csv, resolve
from combcomp.spec import check_task, file_task, limits_of, parse_file_task, split_tasks
from combcomp.study.plan import study

THINGS = "soup chair lamp bread coat kettle bicycle garden".split()
ENDS = "works very well and we are happy with it", "broke on the first day and nobody answers"
ROWS = [(f"The {THINGS[i*5 % 8]} number {i} {ENDS[i % 2]}", ("pos", "neg")[i % 2]) for i in range(40)]
TEXTS = [t for t, _ in ROWS]


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder to work in, with outputs of its own"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMBCOMP_OUTPUTS", str(tmp_path / "out"))
    return tmp_path


def put(name, content):
    "Write a file into the working directory; its name as a task"
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as f:
        f.write(content if isinstance(content, bytes) else content.encode())
    return file_task(name, {})


def table(line, head="text,label\n", rows=ROWS):
    "A file with a line for each row"
    return head + "".join(line(i, t, l) for i, (t, l) in enumerate(rows))


def labelled(word, sep=",", head="text,label\n"):
    "A file whose label is a function of the row"
    return table(lambda i, t, l: f"{t}{sep}{word(i, l)}\n", head)


def jsonl(label, text=lambda i, t: t):
    "JSON lines whose label is a function of the row"
    return "".join(
        json.dumps(dict(text=text(i, t), label=label(i, l))) + "\n" for i, (t, l) in enumerate(ROWS)
    )


def seen(task):
    "What a task holds: text -> label as a word or a number"
    data, labels = load_file_task(task), own_task(task).labels
    rows = [
        (t, y) for split in ("train", "validation") for t, y in zip(data[split]["text"], data[split]["label"])
    ]
    return {t: labels[y] if labels else round(y, 4) for t, y in rows}


def told(task):
    "The message that refuses a task"
    with pytest.raises(ValueError) as e:
        resolve(task)
    return str(e.value)


# Quotes and delimiters

inches = lambda i, t: f'"Best one ever {t}' if i == 3 else f'{t}, the screen has 5"' if i == 9 else t
QUOTES = {
    "tsv, a quote opens in row 4 and ends row 10": ("a.tsv", "\t", inches),
    "tsv, one quote that never closes": ("a.tsv", "\t", lambda i, t: f'"{t}' if i == 5 else t),
    "tsv, inches in every row": ("a.tsv", "\t", lambda i, t: f'{i}" {t} {i}"'),
    "tsv, a quoted word first": ("a.tsv", "\t", lambda i, t: f'"Fine" says {t}'),
    "csv, a quoted word first": ("a.csv", ",", lambda i, t: f'"Fine" says {t}'),
    "semicolons, a quoted word first": ("a.csv", ";", lambda i, t: f'"Fine", says {t}'),
    "csv, two quoted words": ("a.csv", ",", lambda i, t: f'"Fine" and "good" says {t}' if i == 7 else t),
    "csv, quotes inside": ("a.csv", ",", lambda i, t: f'{t} of "Bob" and 5"'),
    "pipes, quotes inside": ("a.csv", "|", lambda i, t: f'{t}, 5" wide; or "so"'),
}


@pytest.mark.parametrize("case", QUOTES)
def test_quotes_that_are_characters(here, case):
    name, sep, text = QUOTES[case]
    lines = "".join(f"{text(i, t)}{sep}{l}\n" for i, (t, l) in enumerate(ROWS))
    found = seen(put(name, f"text{sep}label\n{lines}"))
    assert found == {text(i, t): l for i, (t, l) in enumerate(ROWS)}


QUOTED = {
    "a space before both": ('"text", "label"\n', lambda t, l: f'"{t}", "{l}"\n', lambda t: t),
    "a space and a comma": ("label, text\n", lambda t, l: f'{l}, "Well, {t}"\n', lambda t: f"Well, {t}"),
    "a space and doubled quotes": ("label, text\n", lambda t, l: f'{l}, "A ""{t}"""\n', lambda t: f'A "{t}"'),
    "a space and a line end": ("label, text\n", lambda t, l: f'{l}, "A,\n{t}"\n', lambda t: f"A,\n{t}"),
    "a space after them": ('"text" ,"label"\n', lambda t, l: f'"A, {t}" ,"{l}"\n', lambda t: f"A, {t}"),
    "no space": ("text,label\n", lambda t, l: f'"A ""b"", {t}",{l}\n', lambda t: f'A "b", {t}'),
    "line ends": ("text,label\n", lambda t, l: f'"A, b\n\n{t}, c",{l}\n', lambda t: f"A, b\n\n{t}, c"),
    "backslash": (
        "text,label\n",
        lambda t, l: f'"He \\"so, {t}\\" left",{l}\n',
        lambda t: f'He "so, {t}" left',
    ),
    "backslash at the end": ("text,label\n", lambda t, l: f'"He, \\"{t}\\"",{l}\n', lambda t: f'He, "{t}"'),
    "backslash and a path": (
        "text,label\n",
        lambda t, l: f'"C:\\new \\"{t}\\", ok",{l}\n',
        lambda t: f'C:\\new "{t}", ok',
    ),
    "backslash in some": (
        "text,label\n",
        lambda t, l: f'"He \\"so, {t}\\" left",{l}\n' if l == "pos" else f"{t},{l}\n",
        lambda t: f'He "so, {t}" left' if "works" in t else t,
    ),
    "a path in quotes": ("text,label\n", lambda t, l: f'"{t}, C:\\",{l}\n', lambda t: f"{t}, C:\\"),
}


@pytest.mark.parametrize("case", QUOTED)
def test_quotes_around_a_field(here, case):
    head, line, text = QUOTED[case]
    found = seen(put("a.csv", head + "".join(line(t, l) for t, l in ROWS)))
    assert found == {text(t): l for t, l in ROWS}


@pytest.mark.parametrize(
    "name, line, row",
    [
        ("a.csv", lambda i, t, l: f'"Best, {t},{l}\n' if i == 3 else f'{t} 5",{l}\n', "row 4"),
        ("a.csv", lambda i, t, l: f'"{t},{l}\n' if i == 20 else f"{t},{l}\n", "row 21"),
        ("a.csv", lambda i, t, l: f'{l},"{t}\n' if i == 6 else f'{l},{t}\n', "row 7"),
        ("a.csv", lambda i, t, l: f'"a \\"b, {t},{l}\n' if i == 3 else f'"{t}, ""c""",{l}\n', "row 4"),
        ("a.tsv", lambda i, t, l: f'"{t}\t{l}\n' if i == 3 else f'"{t}\n2nd"\t{l}\n', "row 4"),
        ("a.csv", lambda i, t, l: f'"{t} \\",{l}\n' if i == 7 else f'"A \\"b, {t}\\" c",{l}\n', "row 8"),
    ],
)
def test_a_quote_that_is_never_closed_names_its_row_and_glues_none(here, name, line, row):
    head = {".tsv": "text\tlabel\n"}.get(
        name[1:], "label,text\n" if line(0, "t", "l")[0] == "l" else "text,label\n"
    )
    message = told(put(name, head + "".join(line(i, t, l) for i, (t, l) in enumerate(ROWS))))
    assert row in message and "quote" in message


def test_numbers_and_ids_show_that_a_quote_is_never_closed(here):
    score = {inches(i, t): i / 10 + 0.05 for i, t in enumerate(TEXTS)}
    lines = "".join(f"{t}\t{v:.2f}\n" for t, v in score.items())
    assert seen(put("a.tsv", "text\tscore\n" + lines)) == pytest.approx(score, abs=1e-4)
    lines = "".join(f"{v:.2f}\t{t}\n" for t, v in score.items())
    assert seen(put("a.tsv", "score\ttext\n" + lines)) == pytest.approx(score, abs=1e-4)
    lines = "".join(f"{i}\t{inches(i, t)}\t{l}\n" for i, (t, l) in enumerate(ROWS))
    assert seen(put("a.tsv", "id\ttext\tlabel\n" + lines)) == {
        inches(i, t): l for i, (t, l) in enumerate(ROWS)
    }


def test_sep_and_quote_say_what_a_file_means(here):
    single = put("s.csv", table(lambda i, t, l: f"'It, {t}';{l}\n", "text;label\n"))
    assert seen(f"{single}?sep=;&quote='") == {f"It, {t}": l for t, l in ROWS}
    assert "sep=semicolon&quote=%27#" in resolve(f"{single}?sep=semicolon&quote='")
    colon = put("c.csv", table(lambda i, t, l: f"{t}, so:{l}\n", "text:label\n"))
    assert seen(f"{colon}?sep=:") == {f"{t}, so": l for t, l in ROWS}
    kept = put(
        "k.csv", labelled(lambda i, l: l).replace("The soup", '"The soup"').replace("The lamp", '"The lamp')
    )
    assert "quote" in told(kept)
    assert len(seen(f"{kept}?quote=none")) == 40 and any(
        t.startswith('"The lamp n') for t in seen(f"{kept}?quote=none")
    )
    for wrong in ("sep=comma,", "sep=x", "sep=", "quote=no", "quote=q"):
        with pytest.raises(ValueError, match="file task: (sep|quote)="):
            Run(task=f"{single}?{wrong}")
    escaped = put("e.csv", table(lambda i, t, l: f"'It\\'s, {t}',{l}\n"))
    assert seen(f"{escaped}?quote='") == {f"It's, {t}": l for t, l in ROWS}
    for word, sep in dict(comma=",", tab="\t", pipe="|").items():
        assert seen(
            put("w.csv", labelled(lambda i, l: l, sep, f"text{sep}label\n")) + f"?sep={word}"
        ) == dict(ROWS)
    assert read_csv(Path("s.csv"))[1] == (";", '"', "plain")


S = table(lambda i, t, l: f"{t};{l}\n", "text;label\n")
SHEETS = {
    "sep=;": "sep=;\n" + S,
    "sep=; of windows": "sep=;\r\n" + S.replace("\n", "\r\n"),
    'sep=; after a BOM, in quotes': '\ufeff"sep=;"\n' + S,
    "sep=; and three columns": "sep=;\n" + table(lambda i, t, l: f"{t};{l};{i}\n", "text;label;id\n"),
    "sep=|": "sep=|\n" + S.replace(";", "|"),
    "empty columns": table(lambda i, t, l: f"{t},{l},,\n", "text,label,,\n"),
    "empty columns without names": table(lambda i, t, l: f"{t},{l},,\n"),
    "empty columns in the header": table(lambda i, t, l: f"{t},{l}\n", "text,label,,\n"),
    "empty columns in some rows": table(lambda i, t, l: f"{t},{l}{',,' if i % 3 else ''}\n"),
    "empty rows at the end": table(lambda i, t, l: f"{t},{l}\n") + ",\n,\n\n",
    "empty rows and columns": table(lambda i, t, l: f"{t};{l};\n", "text;label;\n") + ";;\n;;\n",
    "a comma in the header": S.replace("text;", '"text, cleaned";'),
    "two commas in the header": S.replace("text;", '"text, as it was, cleaned";'),
    "a semicolon in the header": table(lambda i, t, l: f"{t},{l}\n", '"text; cleaned",label\n'),
    "a bare comma in the header": S.replace("text;", "text, cleaned;"),
    "carriage returns": S.replace("\n", "\r"),
    "carriage returns and quotes": table(lambda i, t, l: f'"{t}";{l}\r', "text;label\r"),
    "windows": S.replace("\n", "\r\n"),
    "no line end at the end": S[:-1],
    "blank lines": S.replace("\n", "\n\n"),
    "blank lines first": "\n\n" + S,
    "BOM": "\ufeff" + S,
    "two BOMs": "\ufeff\ufeff" + table(lambda i, t, l: f"{l},{t}\n", "label,text\n"),
    "three BOMs and quotes": "\ufeff" * 3 + table(lambda i, t, l: f'"{l}","{t}"\n', '"label","text"\n'),
}


@pytest.mark.parametrize("case", SHEETS)
def test_what_spreadsheets_add(here, case):
    assert seen(put("a.csv", SHEETS[case])) == dict(ROWS)


def test_commas_in_texts_between_other_delimiters(here):
    for sep, end in ((";", "\r"), ("\t", "\n"), ("|", "\r\n")):
        lines = "".join(f"Well, yes, {t}, and so on{sep}{l}{end}" for t, l in ROWS)
        assert seen(put("c.csv", f"text{sep}label{end}{lines}")) == {
            f"Well, yes, {t}, and so on": l for t, l in ROWS
        }


def test_a_first_line_that_is_a_row(here):
    for line, head in (("{t},{l}\n", ""), ("{l}\t{t}\n", ""), ("{t},{n}\n", "")):
        content = "".join(line.format(t=t, l=l, n=int(l == "pos")) for t, l in ROWS)
        message = told(put("h.csv", content))
        assert "the first line has" in message and "names of the columns" in message
    short = "".join(f"great {THINGS[i % 8]} {i},{l}\n" for i, (t, l) in enumerate(ROWS))
    assert "the first line has" in told(put("h.csv", short))
    named = seen(put("h.csv", "".join(f"{t},{l}\n" for t, l in ROWS)) + f"?text={TEXTS[0]}&label=pos")
    assert len(named) == 39  # as they are, if the name says so
    spam = seen(put("spam.csv", table(lambda i, t, l: f"{t},{('spam', 'ham')[i % 2]}\n", "message,spam\n")))
    assert {*spam.values()} == {"spam", "ham"}  # a column may have the name of a class


# A missing value


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "NULL", "null", "N/A", "NA", "None", "#N/A", " NA ", "", "  "]
)
def test_words_for_a_gap(here, word):
    gap = lambda value: lambda i, l: word if i in (4, 9, 20) else value(i, l)
    kinds = dict(
        words=lambda i, l: l, ids=lambda i, l: int(l == "pos"), numbers=lambda i, l: f"{i/10 + .05:.2f}"
    )
    for kind, value in kinds.items():
        task = put("g.csv", labelled(gap(value)))
        message = told(task)
        assert "row 5 has" in message and "(3 such row(s))" in message and "missing=drop" in message
        found = seen(f"{task}?missing=drop")
        assert len(found) == 37 and {type(v) for v in found.values()} == {float if kind == "numbers" else str}
        assert TEXTS[4] not in found
    task = put("t.csv", table(lambda i, t, l: f"{word if i == 7 else t},{l}\n"))
    assert "row 8 has" in told(task) and len(seen(f"{task}?missing=drop")) == 39


def test_a_word_for_a_gap_inside_a_text_or_as_a_class(here):
    found = seen(put("t.csv", table(lambda i, t, l: f"null {t} None,{l}\n")))
    assert {*found} == {f"null {t} None" for t in TEXTS}
    names = seen(put("n.csv", labelled(lambda i, l: ("none", "other", "na")[i % 3])))
    assert {*names.values()} == {"none", "other", "na"}
    task = put("k.csv", labelled(lambda i, l: ("None", "NA")[i % 2]))
    assert "missing=keep" in told(task) and {*seen(f"{task}?missing=keep").values()} == {"None", "NA"}
    assert "row 3 has nothing" in told(
        put("k.csv", labelled(lambda i, l: "" if i == 2 else "NA")) + "?missing=keep"
    )
    bare = put("b.csv", labelled(lambda i, l: "NULL" if i < 5 else l))
    assert len(load_file_task(f"{bare}?missing=transfer")["transfer"]) == 5
    assert len(seen(put("j.jsonl", jsonl(lambda i, l: None if i == 1 else l)) + "?missing=drop")) == 39


def hidden(labels, word="number"):
    "A data set whose labels are ids of neg and pos, or -1"
    import datasets

    kinds = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    texts = [t.replace("number", word) for t in TEXTS]
    return datasets.Dataset.from_dict(dict(text=texts, label=labels), features=kinds)


def test_hidden_labels_are_not_the_last_class(here):
    import datasets

    ids = [int(l == "pos") for _, l in ROWS]
    for split in ("test", "validation"):
        both = datasets.DatasetDict({"train": hidden(ids), split: hidden([-1] * 40, "no")})
        with pytest.raises(ValueError, match="row 1 has nothing in column 'label' .40 such"):
            own(both)
        with pytest.raises(ValueError, match="no row has both a text and a label"):
            own(both, missing="drop")
    part = [-1 if i % 4 == 0 else v for i, v in enumerate(ids)]
    with pytest.raises(ValueError, match="row 1 has nothing in column 'label' .10 such"):
        own(hidden(part))
    assert seen(own(hidden(part), missing="drop")) == {t: l for i, (t, l) in enumerate(ROWS) if i % 4}
    both = datasets.DatasetDict(train=hidden(ids), validation=hidden(part, "no"))
    assert len(load_file_task(own(both, missing="drop"))["validation"]) == 30
    assert {*seen(put("m.csv", labelled(lambda i, l: i % 3 - 1))).values()} == {
        "-1",
        "0",
        "1",
    }  # a class of its own


# Numbers


NEARLY = {
    "a decimal comma": (lambda i: f'"{i//4},{i % 4*25}"', lambda i: i // 4 + float(f"0.{i % 4*25}")),
    "a comma and integers": (lambda i: f'"{i//4},5"' if i % 2 else i // 4, lambda i: i // 4 + 0.5 * (i % 2)),
    "percent": (lambda i: f"{i}%", lambda i: i / 100),
    "percent with a space": (lambda i: f"{i}.5 %", lambda i: (i + 0.5) / 100),
    "percent with a comma": (lambda i: f'"{i},5%"', lambda i: (i + 0.5) / 100),
    "1 beside 1.0": (lambda i: f"{i/2:g}" if i % 3 else f"{i/2:.1f}", lambda i: i / 2),
    "powers": (lambda i: f"{i/4:.3e}", lambda i: i / 4),
    "signs": (lambda i: f"{i/4 - 5:+.2f}", lambda i: i / 4 - 5),
}


@pytest.mark.parametrize("case", NEARLY)
def test_nearly_numeric_columns(here, case):
    written, value = NEARLY[case]
    found = seen(put("n.csv", labelled(lambda i, l: written(i))))
    assert list(found[t] for t in TEXTS) == pytest.approx([value(i) for i in range(40)], abs=1e-4)


@pytest.mark.parametrize("odd", ["x", "?", "1.5 or 2", '"1,5"', "12%", "1.2.3", "inf", "1_0", "unknown"])
def test_one_odd_value_among_numbers_names_its_row(here, odd):
    task = put("o.csv", labelled(lambda i, l: odd if i == 11 else f"{i/10 + .05:.2f}"))
    assert "row 12 has" in told(task) and "kind=classification" in told(task)
    assert "row 12 has" in told(f"{task}?kind=regression")


@pytest.mark.parametrize("form", ["${}", "{} \u20ac", "{}/10", "\u2212{}", "~{}"])
def test_numbers_with_signs_around_them_are_no_classes(here, form):
    task = put("o.csv", labelled(lambda i, l: form.format(f"{i/10 + .05:.2f}"), ";", "text;label\n"))
    assert "row 1 has" in told(task) and "kind=classification" in told(task)
    few = put("o.csv", labelled(lambda i, l: form.format(i % 3), ";", "text;label\n"))
    assert {*seen(few).values()} == {form.format(i) for i in range(3)}


def test_thousands_are_not_decimals(here):
    assert "kind=classification" in told(put("t.csv", labelled(lambda i, l: f'"{i + 1},{i + 100}"')))
    assert "row 6" in told(put("t.csv", labelled(lambda i, l: '"3,5"' if i == 5 else f"{i/10 + .05:.2f}")))


def test_classes_that_are_written_as_numbers_stay_classes(here):
    for words in (("1", "2", "3", "other"), ("0%", "50%", "100%"), ("1", "5"), ("v1.0", "v1.5")):
        found = seen(put("c.csv", labelled(lambda i, l: words[i % len(words)])))
        assert {*found.values()} == {*words}


# Labels

N = dict(pos="1", neg="0")
LABELS = {
    "some 1.0": (lambda i, l: N[l] + ".0" * (i % 5 == 0), N),
    "all 1.0": (lambda i, l: N[l] + ".0", N),
    "1e0 and +1": (lambda i, l: dict(pos=("1e0", "+1"), neg=("0", "-0"))[l][i % 4 // 2], N),
    "1 and 01 and 1.00": (lambda i, l: N[l] if i % 3 else "0" + N[l] + ".00", N),
    "007 is a name": (lambda i, l: dict(pos="007", neg="006")[l], dict(pos="007", neg="006")),
    "codes of one width": (lambda i, l: dict(pos="010", neg="100")[l], dict(pos="010", neg="100")),
    "007 among words": (lambda i, l: dict(pos="007", neg="bob")[l], dict(pos="007", neg="bob")),
    "007 among numbers": (
        lambda i, l: ("007" if i % 4 else "7") if l == "pos" else "12",
        dict(pos="7", neg="12"),
    ),
    "true and TRUE": (
        lambda i, l: ("true", "True", "TRUE")[i % 3] if l == "pos" else "false",
        dict(pos="True", neg="False"),
    ),
    "true alone": (lambda i, l: dict(pos="true", neg="false")[l], dict(pos="true", neg="false")),
    "spaces": (lambda i, l: (f" {l} ", l, f"\u00a0{l}")[i % 3], dict(pos="pos", neg="neg")),
    "accents": (
        lambda i, l: ("caf\u00e9", "cafe\u0301")[i % 4 // 2] if l == "pos" else "bar",
        dict(pos="caf\u00e9", neg="bar"),
    ),
    "capitals": (lambda i, l: dict(pos="Pos", neg="pos")[l], dict(pos="Pos", neg="pos")),
    "versions": (lambda i, l: dict(pos="1.0", neg="beta")[l], dict(pos="1.0", neg="beta")),
}


@pytest.mark.parametrize("case", LABELS)
def test_equal_labels_are_one(here, case):
    written, names = LABELS[case]
    expected = {t: names[l] for t, l in ROWS}
    assert seen(put("a.csv", labelled(written))) == expected
    held = put("held.csv", labelled(written).replace("number", "no"))
    assert (
        held == "file:held.csv" and len(load_file_task("file:a.csv?validation=held.csv")["validation"]) == 40
    )


AGREE = {
    "1 and 1.0": (lambda l: N[l], lambda l: N[l] + ".0"),
    "1.0 and 1": (lambda l: N[l] + ".0", lambda l: N[l]),
    "2 and 2e0": (lambda l: dict(pos="2", neg="3")[l], lambda l: dict(pos="2e0", neg="3.00")[l]),
    "True and true": (lambda l: str(l == "pos"), lambda l: str(l == "pos").lower()),
    "accents": (lambda l: l + "\u00e9", lambda l: l + "e\u0301"),
}


@pytest.mark.parametrize("case", AGREE)
def test_training_and_validation_files_agree(here, case):
    train, held = AGREE[case]
    put("held.csv", labelled(lambda i, l: held(l)).replace("number", "no"))
    for task in (put("a.csv", labelled(lambda i, l: train(l))), put("a.jsonl", jsonl(lambda i, l: train(l)))):
        data = load_file_task(f"{task}?validation=held.csv")
        assert data["validation"]["label"][:] == data["train"]["label"][:]
    own_type = dict(zip(("1 and 1.0", "True and true"), (lambda l: int(N[l]), lambda l: l == "pos"))).get(
        case
    )
    if own_type:
        data = load_file_task(put("b.jsonl", jsonl(lambda i, l: own_type(l))) + "?validation=held.csv")
        assert data["validation"]["label"][:] == data["train"]["label"][:]


def parquet(name, labels, texts=TEXTS, kind=None):
    "A parquet file that no library for data sets wrote"
    import pyarrow
    from pyarrow import parquet as pq

    pq.write_table(pyarrow.table(dict(text=texts, label=pyarrow.array(labels, kind))), name)
    return f"file:{name}"


def test_labels_of_other_types(here):
    import pyarrow

    number = [int(N[l]) for _, l in ROWS]
    expected = {t: N[l] for t, l in ROWS}
    assert seen(parquet("d.parquet", [*map(Decimal, number)], kind=pyarrow.decimal128(5, 2))) == expected
    for kind in (pyarrow.int8(), pyarrow.uint64(), pyarrow.float32(), pyarrow.float64()):
        assert seen(parquet("n.parquet", number, kind=kind)) == expected
    assert seen(parquet("b.parquet", [l.encode() for _, l in ROWS], [t.encode() for t in TEXTS])) == dict(
        ROWS
    )
    day = parquet("t.parquet", [datetime.date(2024, 1, 1 + n) for n in number])
    assert {*seen(day).values()} == {"2024-01-01", "2024-01-02"}
    numbers = own(pd.DataFrame(dict(text=TEXTS, label=np.array(number, "int8"))))
    assert seen(numbers) == expected
    mixed = own(
        pd.DataFrame(dict(text=TEXTS, label=[n if i % 2 else float(n) for i, n in enumerate(number)]))
    )
    assert seen(mixed) == expected


NO_LABEL = {
    "objects": (lambda i, l: dict(name=l), "row 1 .*a dict"),
    "multi-hot": (lambda i, l: [1, 0] if l == "pos" else [0, 1], "row 1 .*a yes or no for each label"),
    "lists of lists": (lambda i, l: [[l, "long"]] if i % 3 else [l], "row 2 .*"),
    "one list": (lambda i, l: [l] if i == 8 else l, "row 9 .*a list"),
    "one object among numbers": (lambda i, l: {} if i == 8 else i / 7, "row 9 "),
    "empty lists": (lambda i, l: [], "several labels need two or more"),
}


@pytest.mark.parametrize("case", NO_LABEL)
def test_values_that_are_no_label(here, case):
    value, message = NO_LABEL[case]
    with pytest.raises(ValueError, match=message):
        resolve(put("l.jsonl", jsonl(value)))


def test_bytes_that_are_not_text_name_their_row(here):
    bad = [b"\xff\xfe" if i == 6 else l.encode() for i, (_, l) in enumerate(ROWS)]
    assert "row 7" in told(parquet("b.parquet", bad)) and "UTF-8" in told("file:b.parquet")
    texts = [b"caf\xe9" if i == 6 else t.encode() for i, t in enumerate(TEXTS)]
    assert "row 7" in told(parquet("c.parquet", [l for _, l in ROWS], texts)) and "UTF-8" in told(
        "file:c.parquet"
    )
    assert "row 3" in told(
        parquet("e.parquet", [l for _, l in ROWS], [None if i == 2 else [t] for i, t in enumerate(TEXTS)])
    )


# JSON

DF = pd.DataFrame(ROWS, columns=["text", "label"])
SHAPES = {
    "columns": DF.to_json(),
    "columns, indented": DF.to_json(indent=1),
    "columns, index of words": DF.set_index(DF.index.map("row {}".format)).to_json(),
    "split": DF.to_json(orient="split"),
    "records": DF.to_json(orient="records"),
    "records, lines": DF.to_json(orient="records", lines=True),
    "index": DF.to_json(orient="index"),
    "index of words": DF.set_index(DF.index.map("row {}".format)).to_json(orient="index"),
    "table": DF.to_json(orient="table"),
    "data": json.dumps({"data": DF.to_dict("records")}),
    "data and more": json.dumps({"version": 1, "data": DF.to_dict("records")}),
    "lists": json.dumps(DF.to_dict("list")),
    "lines of carriage returns": DF.to_json(orient="records", lines=True).replace("\n", "\r"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_json_of_pandas(here, case):
    assert seen(put("a.json", SHAPES[case])) == dict(ROWS)


@pytest.mark.parametrize(
    "content, message",
    [
        (DF.to_json(orient="values"), "row 1 is"),
        (json.dumps({"train": DF.to_dict("records"), "test": []}), "one JSON object with 'train', 'test'"),
        (json.dumps({"text": TEXTS, "label": ["pos"]}), "one JSON object with 'text', 'label'"),
        (json.dumps({"data": ["a", "b"]}), "The columns are 'data'"),
        ("{}", "a.json"),
        ("3", "row 1 is '3'"),
        ('{"columns": ["text", "label"], "data": [["a"]]}', "row 1 is"),
    ],
)
def test_other_json_is_refused(here, content, message):
    assert message in told(put("a.json", content))


# From memory


def test_columns_of_mixed_types(here):
    mixed = [5 if i == 7 else "a" for i in range(40)]
    for column in (
        mixed,
        [[1], "a"] * 20,
        [{"a": 1}, 2] * 20,
        [b"a", "b"] * 20,
        [datetime.date(2024, 1, 1), 5] * 20,
    ):
        assert seen(own(DF.assign(id=column))) == dict(ROWS)
    for odd, kind in (
        (5, "int"),
        (2.5, "float"),
        (datetime.date(2024, 1, 1), "date"),
        (["x"], "list"),
        ({}, "dict"),
    ):
        with pytest.raises(ValueError, match=f"own: row 8 has .* in column 'text'.*{kind}"):
            own(DF.assign(text=[odd if i == 7 else t for i, t in enumerate(TEXTS)]))
    mixed = DF.assign(label=[int(N[l]) if i % 3 else N[l] for i, (_, l) in enumerate(ROWS)])
    assert seen(own(mixed)) == {t: N[l] for t, l in ROWS}
    with pytest.raises(ValueError, match="own: row 8 has .* in column 'label'"):
        own(DF.assign(label=[["pos"] if i == 7 else l for i, (_, l) in enumerate(ROWS)]))
    gaps = own(DF.assign(text=[None if i == 7 else t for i, t in enumerate(TEXTS)]), missing="drop")
    assert len(seen(gaps)) == 39


# Splits


@pytest.mark.parametrize("texts", [100, 60, 20])
def test_a_fifth_of_the_rows_is_held_back(texts):
    rng, one_side = np.random.default_rng(texts), lambda rows, held: {*rows[held]}.isdisjoint(rows[~held])
    for times in (lambda i: 1, lambda i: 3, lambda i: 1 + i % 9, lambda i: 60 if i == 0 else 1):
        rows = np.array([f"text {i}" for i in range(texts) for _ in range(times(i))])
        number = [int(t.split()[1]) for t in rows]
        conflicting = rng.integers(0, 2, len(rows))  # one text, several labels
        for labels, regression in (([i % 2 for i in number], 0), (number, 1), (conflicting, 0)):
            held = held_back(rows.tolist(), labels, regression)
            assert one_side(rows, held) and 0.15 <= held.mean() <= 0.25


def test_a_class_with_one_row_is_said(here):
    with pytest.warns(UserWarning, match="1 class.* one row, such as 'rare'"):
        found = seen(put("r.csv", labelled(lambda i, l: "rare" if i == 8 else l)))
    assert found[TEXTS[8]] == "rare"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen(put("r.csv", labelled(lambda i, l: l)))


# Names

ODD = [
    "a, b",
    "C++",
    "a#b",
    "what?",
    "a&b",
    "100%",
    "a=b",
    "n\u00a0o",
    "a%2Cb",
    "%23",
    "%252C",
    "é 中",
    "a;b",
    "'q'",
]


@pytest.mark.parametrize("name", ODD)
def test_every_character_survives_a_name(here, name):
    for path in (f"{name}.csv", f"{name}/x.csv", f"{name}/{name}.csv"):
        csv_name = name.replace('"', '""')
        put(path, table(lambda i, t, l: f'"{t}";"{l}"\n', f'"{csv_name}";"{csv_name}2"\n'))
        held = f"held {name}.csv"
        put(held, table(lambda i, t, l: f'"{t} no";"{l}"\n', f'"{csv_name}";"{csv_name}2"\n'))
        task = own(path, name, f"{name}2", validation=held, sep=";")
        assert Run(task=task).task == check_task(task) == task and "," not in task
        options = dict(text=[name], label=f"{name}2", validation=held, sep="semicolon")
        assert parse_file_task(task)[:2] == (path, options)
        assert len(load_file_task(task)["train"]) == 40
        assert os.path.samefile(parse_file_task(task)[0], path)
    assert seen(own(DF, name=name)) == dict(ROWS)
    assert seen(own(DF, outputs=f"{name}/out")) == dict(ROWS)
    names = {"pos": name, "neg": "other"}
    assert {*seen(own(DF.assign(label=DF["label"].map(names)))).values()} == {name, "other"}


def test_names_as_they_are_typed(here):
    put("reviews, 2024.csv", labelled(lambda i, l: l))
    put("held+out.csv", labelled(lambda i, l: l).replace("number", "no"))
    put("cpp.csv", labelled(lambda i, l: l, head="C++,C#\n"))
    put("n\u00a0b.csv", labelled(lambda i, l: l))
    assert seen("file:reviews, 2024.csv") == seen("file:n\u00a0b.csv") == dict(ROWS)
    assert len(load_file_task("file:reviews, 2024.csv?validation=held+out.csv")["train"]) == 40
    assert seen("file:cpp.csv?text=C++&label=C#") == dict(ROWS)
    for bad in ("file:a\nb.csv", "file:a\x00.csv", "file:", "file:a#b.csv"):
        with pytest.raises(ValueError, match="is not allowed"):
            Run(task=bad)


def test_names_of_before_stay():
    old = "file:data/re views.csv?text=Review&label=Verdict%2C final&missing=drop#3f2a9c0d1e2f"
    assert check_task(old) == old
    assert check_task("file:100%.csv?label=y") == "file:100%.csv?label=y"


def test_home_is_expanded_wherever_a_path_is_given(here, monkeypatch):
    home = here / "home"
    monkeypatch.setenv("HOME", str(home))
    put("home/a.csv", labelled(lambda i, l: l))
    put("home/held.csv", labelled(lambda i, l: l).replace("number", "no"))
    put("home/more.txt", "one more text\n")
    name = "file:~/a.csv?validation=~/held.csv&unlabelled=~/more.txt"
    assert {k: len(d) for k, d in load_file_task(name).items()} == dict(train=40, validation=40, transfer=1)
    assert own("~/a.csv").startswith("file:~/a.csv?")
    assert Run(task="file:~/a.csv").id == Run(task=f"file:{home}/a.csv").id
    assert outputs_dir("~/mine") == home / "mine"
    monkeypatch.setenv("COMBCOMP_OUTPUTS", "~/theirs")
    assert outputs_dir() == home / "theirs"
    assert Run(methods="kd", teacher="~/t").teacher == str(home / "t")
    assert check_free("~/model.safetensors") == home / "model.safetensors"
    own(DF, outputs="~/mine")
    assert [*(home / "mine/data").glob("*.parquet")] and not (here / "~").exists()
    split = split_tasks("file:~/a.csv,wic", [])
    assert split == ["file:~/a.csv", "wic"]


# Lists


def test_commas_between_tasks_and_in_their_names(here):
    for name in ("b.csv", "a,b.csv", "a, b,c.csv", "x:1,y.csv", "x,wic.csv"):
        put(name, labelled(lambda i, l: l))
    lists = {
        "file:b.csv,accept": ["file:b.csv", "accept"],
        "file:a,b.csv": ["file:a,b.csv"],
        "file:a,b.csv,file:b.csv": ["file:a,b.csv", "file:b.csv"],
        "wic, file:a, b,c.csv ,accept": ["wic", "file:a, b,c.csv", "accept"],
        "file:b.csv?label=x, y,accept": ["file:b.csv?label=x, y", "accept"],
        "file:b.csv,acept": ["file:b.csv", "acept"],
        "file:no.csv,wic": ["file:no.csv", "wic"],
        "file:no,where.csv,file:b.csv": ["file:no,where.csv", "file:b.csv"],
        "file:x,wic.csv,wic": ["file:x,wic.csv", "wic"],
        "all": ["wic"],
        "": [],
    }
    for text, names in lists.items():
        assert split_tasks(text, ["wic"]) == names, text
    todo = study(sizes="l1", tasks="file:a,b.csv,accept", methods="qat", limits="file:a,b.csv:20,accept:30")
    assert [r.limit for r in todo] == [20, 30] and todo[0].task == "file:a%2Cb.csv"


def test_limits_of_files():
    names = ["file:b.csv", "file:a%2Cb.csv?label=y", "file:x:1,y.csv", "accept"]
    assert limits_of("file:b.csv:20,accept:30", names) == {"file:b.csv": 20, "accept": 30}
    assert limits_of("file:b.csv=20, accept = 30", names) == {"file:b.csv": 20, "accept": 30}
    assert limits_of("file:a,b.csv:5", names) == {"file:a%2Cb.csv?label=y": 5}
    assert limits_of("file:x:1,y.csv:7,file:b.csv:8", names) == {"file:x:1,y.csv": 7, "file:b.csv": 8}
    assert limits_of("file:a%2Cb.csv?label=y:6", names) == {"file:a%2Cb.csv?label=y": 6}
    for wrong in ("file:c.csv:20", "accept:many", "accept", "accept:1;file:b.csv:2", "accept:-1"):
        with pytest.raises(ValueError, match="task:number"):
            limits_of(wrong, names)


# Values that look right


def test_values_that_look_right():
    same = {
        "seed": [3, np.int64(3), np.uint8(3), "3", 3.0, "3.0", np.float32(3)],
        "limit": [100, np.int32(100), "100", "1e2"],
        "lr": [1e-4, "1e-4", "0.0001", np.float64(1e-4)],
        "epochs": [2, 2.0, "2", np.float32(2), np.int8(2)],
        "methods": ["", None, "None", "none"],
        "teacher": ["", None, "None"],
    }
    for field, values in same.items():
        assert len({Run(**{field: v}) for v in values}) == 1, field
        assert len({Run(**{field: v}).id for v in values}) == 1, field
    for field in ("limit", "lr", "epochs"):
        assert Run(**{field: "None"}) == Run()
    wrong = dict(
        seed=[
            "1.5",
            "one",
            True,
            np.bool_(True),
            [1],
            "None",
            None,
            "nan",
            Fraction(1, 2),
            10**400,
            "9" * 400,
        ],
        lr=[np.float32(1e-4), "fast", "inf"],
    )
    for field, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{field}=.*(this is a|an int in|a float in)"):
                Run(**{field: value})
    with pytest.raises(ValueError, match="this is a float32"):
        Run(lr=np.float32(1e-4))
    assert outputs_dir(2024).name == "2024"
