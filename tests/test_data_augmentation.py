"Synonym replacement: the same everywhere, and nothing broken"

import json, os, random, re, subprocess, sys
import pytest
from hypothesis import example, given, settings, strategies as st

pytest.importorskip("nlpaug")
datasets = pytest.importorskip("datasets")
from combcomp.data.wordnet import wordnet

try:
    wordnet()
except Exception as e:
    pytest.skip(f"no WordNet here: {e}", allow_module_level=True)

from combcomp.data.augmentation import augment, augment_text, inflect, replacements, shared_words, synonyms

TEXTS = [
    "The teacher quickly chose a huge movie about the U.S. , it 's said.",
    "She began a story, and the doctor's car stopped.",
    "Usually \"animals\" like this film; cars don't.",
    "An idea, a thought.",
    "42 ?!",
    "",
    "The student bought a car in the city (rapidly).",
]


def rows(n=40):
    texts = [TEXTS[i % len(TEXTS)] for i in range(n)]
    return datasets.Dataset.from_dict(
        dict(text=texts, label=[i % 3 for i in range(n)], idx=[i * 7 for i in range(n)])
    )


CODE = """
import json, sys
from combcomp.data.augmentation import augment_text
print(json.dumps([augment_text(t, 0.5, f"0:{i}:1") for i, t in enumerate(json.loads(sys.argv[1]))]))
"""


def test_same_in_a_fresh_process():
    out = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(TEXTS)],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, PYTHONHASHSEED="1234"),
    )
    here = [augment_text(t, 0.5, f"0:{i}:1") for i, t in enumerate(TEXTS)]
    assert json.loads(out.stdout.splitlines()[-1]) == here
    assert here != TEXTS


def test_import_loads_no_nlpaug():
    code = "import sys, combcomp.data.tasks; before = 'torch' in sys.modules; import combcomp.data.augmentation; print('nlpaug' in sys.modules, 'torch' in sys.modules and not before)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_workers_do_not_matter():
    one, two = (augment(rows(), ["text"], ["text"], copies=2, num_proc=n) for n in (1, 2))
    none = augment(rows(), ["text"], ["text"], copies=2)
    assert one.to_dict() == two.to_dict() == none.to_dict()


def test_rows_do_not_matter():
    "A row's copy is the same in a shuffled and in a cut data set, and differs by seed"
    whole = augment(rows(), ["text"], ["text"])
    part = augment(rows().select([21, 3, 7, 0]), ["text"], ["text"])
    by_idx = {(r["idx"], r["copy"]): r["text"] for r in whole}
    assert all(by_idx[r["idx"], r["copy"]] == r["text"] for r in part)
    assert augment(rows(), ["text"], ["text"], seed=1)["text"][:] != whole["text"][:]


def test_labels_idx_and_originals_are_kept():
    data = rows().cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    big = augment(data, ["text"], ["text"], copies=3)
    assert len(big) == 4 * len(data) and big.features["label"] == data.features["label"]
    assert big["label"][:] == data["label"][:] * 4 and big["idx"][:] == data["idx"][:] * 4
    assert big["text"][: len(data)] == data["text"][:]
    assert big["copy"][:] == [k for k in range(4) for _ in range(len(data))]
    assert augment(data, ["text"], ["text"], copies=0)["text"][:] == data["text"][:]
    assert augment(data, [], ["text"])["text"][:] == data["text"][:] * 2


def test_empty_dataset():
    assert len(augment(rows().select([]), ["text"], ["text"])) == 0


def test_global_random_state_is_untouched():
    random.seed(5)
    state = random.getstate()
    augment_text(TEXTS[0], 0.5)
    augment(rows(4), ["text"], ["text"])
    assert random.getstate() == state
    random.seed(6)
    assert augment_text(TEXTS[0], 0.5, "x") == (random.seed(7), augment_text(TEXTS[0], 0.5, "x"))[1]


@pytest.mark.parametrize("seed", range(10))
def test_tokens_that_must_survive(seed):
    text = "It 's  the U.S. movie, do n't\tyou (really) begin the well-known teacher's film? 3.5% of IBM"
    new = augment_text(text, 1.0, seed)
    assert new != text
    for t in ("It 's  the U.S. ", "do n't\tyou (", "well-known", "? 3.5% of IBM", "'s "):
        assert t in new
    assert re.sub("[A-Za-z]+", "", new) == re.sub("[A-Za-z]+", "", text)


def test_capitals_and_names():
    assert augment_text("Usually it rains.", 1.0) in ("Normally it rains.", "Commonly it rains.")
    assert augment_text("He met Movie and Teacher in MOVIE", 1.0) == "He met Movie and Teacher in MOVIE"


@pytest.mark.parametrize("seed", range(20))
def test_articles_agree(seed):
    new = augment_text(
        "This is a large car, an idea, a huge story, an animal, a teacher, an effort and an attempt.",
        1.0,
        seed,
    )
    for article, word in re.findall(r"\b(an?) ([a-z]+)", new):
        assert (article == "an") == (word[0] in "aeiou"), new


@pytest.mark.parametrize("seed", range(10))
def test_keep_and_shared_words(seed):
    assert "teacher" in augment_text("The teacher quickly began the movie.", 1.0, seed, keep=("teacher",))
    pair = datasets.Dataset.from_dict(
        dict(a=["The movies began quickly."], b=["A teacher began the movie quickly."], label=[0])
    )
    new = augment(pair, ["a", "b"], ["a", "b"], words=1.0, seed=seed)[1]
    # every word but "teacher" is shared, and "a" does not go with "instructor"
    assert new["a"] == "The movies began quickly." and new["b"] == pair["b"][0]
    only = augment(pair, ["b"], ["b"], words=1.0, seed=seed)[1]
    assert only["a"] == pair["a"][0] and only["b"] != pair["b"][0]


def test_shared_words_in_any_form():
    assert shared_words(["She ran to the cities", "A city; running dogs"]) >= {
        "ran",
        "running",
        "city",
        "cities",
    }
    assert shared_words(["a dog", "a cat"]) == frozenset()


@pytest.mark.parametrize(
    "word,pos", [("the", "n"), ("be", "v"), ("not", "r"), ("qwzx", "n"), ("London", "n"), ("", "n")]
)
def test_words_without_synonyms(word, pos):
    assert synonyms(word, pos) == []


def test_synonyms_are_plain_words_and_forms_come_back():
    wn = wordnet()
    for word in ("movie", "begin", "quickly", "huge", "teacher", "happen", "car", "animal", "purpose"):
        for pos, tag in dict(n="NNS", v="VBD").items():
            for s in synonyms(word, pos):
                assert re.fullmatch("[a-z]+", s) and s != word
                if form := inflect(s, tag):
                    assert wn.morphy(form, pos) == s
    assert "automobiles" in replacements("cars", "NNS")


@pytest.mark.parametrize(
    "bad",
    [
        dict(words=-0.1),
        dict(words=1.1),
        dict(words=float("nan")),
        dict(words="x"),
        dict(copies=-1),
        dict(copies=1.5),
        dict(columns=["nope"]),
        dict(texts=["nope"]),
    ],
)
def test_bad_input(bad):
    with pytest.raises(ValueError, match="augment: "):
        augment(rows(2), **{**dict(columns=["text"], texts=["text"]), **bad})


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(" ".join(TEXTS).split() + ["/", "\u2028", "U.S.", "(a", "n't", "_", "&slash;"]),
        max_size=15,
    ).map(" ".join)
)
@example("\x1c a movie \x85 began\xa0quickly")
@example("''' movie''' ...car)")
def test_any_text_keeps_its_tokens_and_spaces(text):
    new = augment_text(text, 1.0, "9")
    assert len(new.split()) == len(text.split())
    assert re.findall(r"\s+", new) == re.findall(r"\s+", text)
    assert augment_text(text, 1.0, "9") == new
