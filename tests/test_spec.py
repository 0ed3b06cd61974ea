"The grammar of combinations under arbitrary and hostile input"

import pytest
from hypothesis import given, strategies as st

from combcomp.spec import KD, MP, PTQ, QAT, Run, canonical, parse

share = lambda **k: st.floats(0, 1, allow_nan=False, **k)
kd = st.builds(KD, temperature=st.floats(0.01, 100), alpha=share(), augment=st.integers(0, 20), words=share())
mp = st.builds(
    MP,
    sparsity=share(exclude_max=True),
    embeddings=st.booleans(),
    schedule=st.sampled_from(["linear", "cubic", "oneshot"]),
    scope=st.sampled_from(["layer", "global"]),
    start=st.floats(0, 0.5),
    end=st.floats(0.5, 1),
)
bits = dict(
    bits=st.integers(2, 16), activations=st.sampled_from([8, 16, None]), embeddings=st.integers(2, 16)
)
qat, ptq = st.builds(QAT, **bits, freeze=share()), st.builds(PTQ, **bits, batches=st.integers(1, 10_000))
name = lambda spec: type(spec).__name__.lower()
stage = lambda *options: st.lists(st.one_of(*options), min_size=1, max_size=3, unique_by=name).map(
    lambda s: tuple(sorted(s, key=name))
)
trained = st.lists(stage(kd, mp, qat), max_size=4).map(tuple)
rounded = st.tuples(st.lists(stage(kd, mp), max_size=3), stage(kd, mp), ptq).map(
    lambda t: (*t[0], tuple(sorted((*[s for s in t[1]][:2], t[2]), key=name)))
)


@given(st.one_of(trained, rounded))
def test_what_is_written_is_read_back(stages):
    text = canonical(stages)
    if len(text) > 500:
        return  # more than anyone may write
    assert parse(text) == stages and canonical(text) == text and Run(methods=text).methods == text


@given(
    st.permutations(["kd", "mp(sparsity=0.4)", "qat(bits=4)"]),
    st.lists(st.sampled_from(["", " ", "  "]), min_size=6, max_size=6),
)
def test_order_and_spacing_do_not_matter(parts, spaces):
    text = ",".join(a + p + b for p, a, b in zip(parts, spaces[::2], spaces[1::2]))
    assert (
        canonical(text) == "kd,mp(sparsity=0.4),qat(bits=4)"
        and Run(methods=text).id == Run(methods="kd,mp(sparsity=0.4),qat(bits=4)").id
    )


@given(st.text(max_size=200))
def test_any_text_is_a_combination_or_a_clear_error(text):
    try:
        assert parse(canonical(text)) == parse(text)
    except ValueError as e:
        assert "methods" in str(e) and len(str(e)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "kd(temperature=__import__('os'))",
        "kd(**{'temperature': 2})",
        "kd(temperature=1e999)",
        "kd.qat",
        "kd[0]",
        "kd if mp else qat",
        "lambda: kd",
        "[kd]",
        "'kd'",
        "kd(2)",
        "((((((kd",
        "(" * 499,
        "-" * 499,
        "mp(sparsity=" + "(" * 400 + "1" + ")" * 10,
        "kd" * 500_000,
        "kd\n",
        "kd\0",
        "ｋｄ",
        "kԁ",
        "qat;kd",
        "kd,,mp",
        "mp(sparsity=True)",
        "mp(sparsity='0.5')",
        "mp(embeddings=1)",
        "kd(alpha=1.01)",
        "kd(temperature=0)",
        "kd(augment=0.5)",
        "qat(bits=8.5)",
        "qat(activations=7)",
        "mp(start=0.9)",
        "qat > ptq",
        "ptq,qat",
        "ptq > mp",
        "> kd",
        "kd >",
        "kd > > mp",
        "kd,kd",
    ],
)
def test_hostile_and_wrong_text(text):
    with pytest.raises(ValueError) as e:
        parse(text)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize("value", [3, b"kd", ["kd"], float("nan")])
def test_methods_is_text(value):
    with pytest.raises((ValueError, TypeError)):
        Run(methods=value)
