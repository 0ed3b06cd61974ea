"Statistics beyond what 16_stats shows: coverage of intervals by simulation, whole studies with known answers, stale results"

import json, math, re, shutil

import numpy as np, pandas as pd, pytest

import check_sync
from combcomp.spec import SUBSETS
from combcomp.study.html_report import report
from combcomp.study.store import load_predictions, load_results, save_predictions
from combcomp.study.reductions import (
    contrasts,
    pareto_front,
    interactions,
    interval,
    max_reduction,
    paper_figure1,
    paper_table1,
    size_at_score,
)
from combcomp.study.bootstrap import probability_of_improvement, paper_draws, bootstrap_scores
from combcomp.study.recommendation import recommend
from test_papermill import error_of

ARCHITECTURES = dict(a=(90, 1.0), b=(60, 0.7), c=(40, 0.4), d=(25, 0.0))  # megabytes, shift of the logit
COMBINATIONS = {
    "": (1, 0),
    "kd": (1, 0.12),
    "qat": (4, -0.03),
    "mp": (1.6, -0.1),
    "kd,qat": (4, 0.1),
    "kd,mp": (1.6, 0.03),
    "mp,qat": (6, -0.12),
    "kd,mp,qat": (6, 0.02),
}
HARD, TRAINING, OWN = (
    1.5,
    0.05,
    0.8,
)  # spread of difficulty, of a training, and of a run's luck with an example


def expected(shift):
    return 50 * (1 + math.erf((1.5 + shift) / math.sqrt(HARD**2 + TRAINING**2 + OWN**2) / math.sqrt(2)))


def rows(score):
    return pd.DataFrame(
        [
            dict(
                family="f",
                task=t,
                size=a,
                methods=m,
                seed=k,
                id=f"{t} {m} {a} {k}",
                mb_paper=mb / factor,
                **score(t, shift + better, k),
            )
            for t in ("wic", "accept")
            for m, (factor, better) in COMBINATIONS.items()
            for a, (mb, shift) in ARCHITECTURES.items()
            for k in range(3)
        ]
    )


def simulated(rng, examples=1000):
    "A study of two tasks and three seeds, and its predictions"
    difficulty, kept = {t: rng.normal(1.5, HARD, examples) for t in ("wic", "accept")}, []

    def score(task, shift, seed):
        kept.append(
            (difficulty[task] + shift + rng.normal(0, TRAINING) + rng.normal(0, OWN, examples) > 0).astype(
                np.uint8
            )
        )
        return dict(score=100 * kept[-1].mean())

    table = rows(score)
    predictions = dict(zip(table["id"], kept))
    return table, lambda id: (predictions[id], np.ones(examples, np.uint8))


TRUTH = rows(lambda task, shift, seed: dict(score=expected(shift)))


@pytest.fixture(scope="module")
def studies():
    "Studies with their draws"
    for_one = lambda k: (made := simulated(np.random.default_rng([11, k]))) and (
        made[0],
        bootstrap_scores(made[0], n=400, seed=k, predictions=made[1]),
    )
    return [for_one(k) for k in range(60)]


def test_intervals_of_scores_cover(studies):
    true = TRUTH.groupby(["family", "task", "size", "methods"])["score"].mean()
    inside, apart = [], []
    for _, draws in studies:
        a, b = interval(draws.to_numpy().T)
        inside.append(((a <= true[draws.index]) & (true[draws.index] <= b)).mean())
        gain, lost = (draws.xs(m, level="methods") for m in ("kd", ""))
        a, b = interval((gain - lost.loc[gain.index]).to_numpy().T)
        apart.append(
            (
                (a <= (t := (true.xs("kd", level="methods") - true.xs("", level="methods"))[gain.index]))
                & (t <= b)
            ).mean()
        )
    assert 0.92 <= np.mean(inside) <= 0.98 and 0.92 <= np.mean(apart) <= 0.98, (
        np.mean(inside),
        np.mean(apart),
    )


@pytest.mark.parametrize("aggregate", ["tasks", "curve"])
def test_intervals_of_reductions_and_interactions_cover(studies, aggregate):
    truth = max_reduction(TRUTH, aggregate=aggregate)
    shares = {
        "reduction": np.mean(
            [
                ((t["lower"] <= truth["low"] + 1e-9) & (truth["high"] <= t["upper"] + 1e-9)).mean()
                for table, draws in studies
                for t in [max_reduction(table, aggregate=aggregate, draws=draws)]
            ]
        )
    }
    for kind in ("product", "once"):
        truth = interactions(TRUTH, aggregate=aggregate, kind=kind)
        shares[kind] = np.mean(
            [
                ((t["lower"] <= truth["factor"] + 1e-9) & (truth["factor"] <= t["upper"] + 1e-9)).mean()
                for table, draws in studies
                for t in [interactions(table, aggregate=aggregate, kind=kind, draws=draws)]
            ]
        )
    assert all(0.92 <= v <= 0.98 for v in shares.values()), shares


def test_coverage_can_be_too_low(studies):
    "Intervals half as wide cover far less: the bounds above are a test"
    true = TRUTH.groupby(["family", "task", "size", "methods"])["score"].mean()
    narrow = [((abs(true[d.index] - d.mean(1)) <= 0.5 * 1.96 * d.std(1))).mean() for _, d in studies]
    assert np.mean(narrow) < 0.8


def curves(**shrink):
    "Curves of known form: half the size costs two points"
    return pd.DataFrame(
        [
            dict(
                family="f",
                task="t",
                size=f"s{b}",
                methods=m.replace("_", ","),
                seed=0,
                score=80 + 2 * math.log2(b) + shift,
                mb_paper=b / factor,
            )
            for m, (factor, shift) in dict({"": (1, 0)}, **shrink).items()
            for b in (2, 4, 8, 16, 32)
        ]
    )


@pytest.mark.parametrize("tolerance", [0, 0.25, 0.5, 1, 2])
def test_reductions_have_their_closed_form(tolerance):
    "On a straight curve a shift of s points and a tolerance of t are worth 2^((s + t)/2)"
    table = max_reduction(curves(kd=(1, 1), qat=(4, -0.5)), tolerance).set_index(["methods", "size"])[
        "max_reduction"
    ]
    for methods, (factor, shift) in {"": (1, 0), "kd": (1, 1), "qat": (4, -0.5)}.items():
        assert table[methods, "s8"] == pytest.approx(factor * 2 ** ((shift + tolerance) / 2))


@pytest.mark.parametrize("tolerance", [0.25, 0.5, 1])
def test_only_counting_the_tolerance_once_finds_that_savings_multiply(tolerance):
    exact = curves(
        kd=(2, 0), mp=(1.5, 0), qat=(4, 0), kd_mp=(3, 0), kd_qat=(8, 0), mp_qat=(6, 0), kd_mp_qat=(12, 0)
    )
    at = (
        lambda kind: interactions(exact, tolerance, kind=kind)
        .query("size == 's32'")
        .set_index("effect")["factor"]
    )
    assert at("once").tolist() == pytest.approx([1] * 4)
    assert at("product").tolist() == pytest.approx([2 ** (-tolerance / 2)] * 3 + [2**-tolerance])


def test_the_factorial_reproduces_every_reduction():
    "Seven effects and the uncompressed reduction are as much as eight reductions: from them each can be had back"
    table = (
        interactions(paper_figure1(), kind="factorial").query("size == 'base'").set_index("effect")["factor"]
    )
    end = max_reduction(paper_figure1()).query("size == 'base'").set_index("methods")["end"]
    sign = lambda effect, s: math.prod(1 if m in s.split(",") else -1 for m in effect)
    assert len(table) == 7
    for s in SUBSETS:  # the grand mean, and of each effect of k methods the 2^k-th part up or down
        log = np.log(end).mean() + sum(
            sign(e.split(" x "), s) * math.log(f) / 2 ** len(e.split(" x ")) for e, f in table.items()
        )
        assert math.exp(log) == pytest.approx(end[s])


@pytest.mark.parametrize(
    "scores, target",
    [((70, 80, 90), 85), ((70, 65, 90), 85), ((90, 80, 70), 75), ((70, 70, 70), 70), ((70, 80, 90), 95)],
)
def test_smallest_agrees_with_a_walk_along_the_front(scores, target):
    mb = np.array([10.0, 20.0, 40.0])
    on = pareto_front(mb, scores)
    xs, ys = np.log(mb[on]), np.array(scores, float)[on]
    low, high = size_at_score(mb, np.array(scores, float), target)
    if ys[0] >= target:
        assert (low, high) == (0, 10)
    elif ys[-1] < target:
        assert (low, high) == (40, np.inf)
    else:
        assert low == high == pytest.approx(math.exp(np.interp(target, ys, xs)))


def test_the_paper_as_printed():
    logs = (
        paper_table1()
        .assign(v=lambda t: np.log(t["max_reduction"]))
        .pivot(index="size", columns="methods", values="v")
    )
    got = {
        e: round(math.exp(sum(w * logs[m] for m, w in c.items()).mean()), 2)
        for e, c in contrasts("product").items()
    }
    assert got == {"kd x mp": 1.22, "kd x qat": 1.16, "mp x qat": 0.87, "kd x mp x qat": 1.41}
    singles = (
        max_reduction(paper_figure1())
        .query("methods in ['kd', 'mp', 'qat']")
        .groupby("methods")["end"]
        .apply(lambda v: np.exp(np.log(v).mean()))
    )
    assert singles["qat"] > singles["kd"] > singles["mp"]  # the order of Table 1, on the mean curve


def test_draws_are_the_same_in_another_process(run_py):
    code = "from combcomp.study.bootstrap import paper_draws; print(paper_draws(3, seed=5).to_numpy().sum())"
    assert len({run_py(code, PYTHONHASHSEED=s).strip() for s in (0, 7)}) == 1


def test_recommend_keeps_to_the_budget(studies):
    table, draws = studies[0]
    for megabytes in (10, 16, 25, 95):
        got = recommend(table, megabytes=megabytes, size_col="mb_paper", draws=draws)
        assert (
            (got["megabytes"] <= megabytes).all()
            and got["score"].is_monotonic_decreasing
            and abs(got["best"].sum() - 1) < 1e-6
        )
        assert ((got["lower"] <= got["score"]) & (got["score"] <= got["upper"])).mean() > 0.9
    with pytest.warns(UserWarning, match="no run fits megabytes at most 0.001; the nearest of 32 is d"):
        assert not len(recommend(table, megabytes=0.001, size_col="mb_paper", draws=draws))
    with pytest.raises(ValueError, match="give megabytes="):
        recommend(table)


def test_improvement_is_a_probability(studies):
    _, draws = studies[0]
    forth, back = probability_of_improvement(draws, "kd", "mp"), probability_of_improvement(draws, "mp", "kd")
    assert forth["probability"] + back["probability"] == pytest.approx(1) and forth["probability"] > 0.9
    apart = draws.query("size == 'a' and methods == 'mp' or size == 'b' and methods == 'kd'")
    with pytest.raises(ValueError, match="share no task"):
        probability_of_improvement(apart, "mp", "kd")


# Results that are committed

OF_ONE_STUDY = ("table1", "figure1", "findings")  # the result notebooks that take any table


@pytest.mark.parametrize("notebook", OF_ONE_STUDY)
def test_result_notebooks_take_any_table(tmp_path, notebook):
    "Two architectures, three combinations, one task and seed: what cannot be said is said to be so"
    table = load_results(own=False)
    few = table[
        table["size"].isin(["l2", "l1"])
        & table["methods"].isin(["", "kd", "qat"])
        & (table["task"] == "accept")
        & (table["limit"] == 1000)
        & (table["seed"] == 0)
        & (table["recipe"] == "v2")
        & (table["batch_size"] == 16)
        & (table["split"] == "validation")
    ]
    assert len(few) == 6
    for id in few["id"]:
        predicted, labels = load_predictions(id)
        save_predictions(id, np.eye(2)[predicted], labels, tmp_path / "few")
    few.to_csv(tmp_path / "few" / "results.csv", index=False)
    given = dict(results=tmp_path / "few", tasks="accept", limits="accept=1000", into=tmp_path / "made")
    assert error_of(notebook, **given) is None
    assert (
        len([*(tmp_path / "made" / "figures").iterdir()]) >= 4
        and len([*(tmp_path / "made" / "outputs" / "tables").iterdir()]) >= 6
    )
    if notebook == "findings":
        assert (
            "could not be tested here"
            in (tmp_path / "made" / "outputs" / "tables" / "findings.csv").read_text()
        )


def test_a_stale_figure_or_table_is_noticed(tmp_path):
    "One number changed in what is committed, in each kind of file"
    made, project = tmp_path / "made", tmp_path / "project"
    for glob in ("figures/figure1.*", "figures/figure1_tasks.*", "outputs/tables/figure1.*"):
        for p in check_sync.ROOT.glob(glob):
            for folder in (made, project):
                (folder / p.relative_to(check_sync.ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(p, folder / p.relative_to(check_sync.ROOT))
    assert check_sync.differing(made, project) == []
    svg, csv, png = (
        project / n
        for n in ("figures/figure1.svg", "outputs/tables/figure1.csv", "figures/figure1_tasks.png")
    )
    svg.write_text(svg.read_text().replace("shows ", "shows 0", 1))
    csv.write_text(csv.read_text().replace("1", "2", 1))
    png.unlink()
    assert check_sync.differing(made, project) == [
        "figures/figure1.svg",
        "figures/figure1_tasks.png",
        "outputs/tables/figure1.csv",
    ]


QUOTE = re.compile(r'\("([+-]?\d[\d.,]*)", ')


@pytest.mark.parametrize("notebook", ["findings", "table1", "figure1", "glue", "index"])
def test_every_number_of_the_conclusions_is_checked(notebook):
    "A paragraph with decimal numbers has a hidden cell that compares them with the rows, and quotes nothing else"
    cells = json.loads((check_sync.ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for left_out in (r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)", r"recipe v\d"):  # code, addresses, names
        prose = re.sub(left_out, " ", prose, flags=re.DOTALL)
    code = "".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "code" and "quoted(" in "".join(c["source"])
    )
    checked = {*QUOTE.findall(code)} | {
        q for group in re.findall(r"zip\(\(([^)]*)\)", code) for q in re.findall(r'"([\d.,]+)"', group)
    }
    decimals = {n for n in re.findall(r"(?<![\w.])-?\d+\.\d+(?![\w.]*\d)", prose)}
    assert decimals and not decimals - checked - {"3.10", "2.0"}, (
        decimals - checked
    )  # of Python and of the licence
    numbers = {n.rstrip(".,") for n in re.findall(r"(?<![\w.])-?\d[\d.,]*|\d[\d.,]*", prose)}
    assert (
        not checked - numbers
    ), f"{notebook} checks numbers that its prose does not quote: {checked - numbers}"


def test_stale_prose_is_noticed(tmp_path):
    "One quoted number changed: the notebook ends in an error that names it"
    notebook = json.loads((check_sync.ROOT / "nbs/figure1.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = [line.replace('("74.9"', '("74.8"') for line in cell["source"]]
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/figure1.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    shutil.copytree(
        check_sync.ROOT / "outputs",
        tmp_path / "outputs",
        ignore=shutil.ignore_patterns("cache", "models", "tour", "notebooks"),
    )
    shutil.copy(check_sync.ROOT / "settings.ini", tmp_path)
    with pytest.raises(Exception, match="the prose quotes 74.8, and the rows now give 74.87"):
        check_sync.executed("figure1", tmp_path / "made", tmp_path)


def test_the_report_needs_nothing_else(tmp_path):
    "Three result notebooks in one file: every picture and link is inside it or leads to a public page"
    path = report([check_sync.ROOT / "nbs" / f"{n}.ipynb" for n in OF_ONE_STUDY], tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    assert text.count("<h1 ") == 3 and text.count("data:image/png") >= 8 and "<script" not in text
    loaded = re.findall(r'<(?:img|link|iframe|source)[^>]*?(?:src|href)="(?!data:)([^"]+)', text)
    links = {
        m
        for m in re.findall(r'<a [^>]*href="([^"]+)"', text)
        if not m.startswith(("#", "https://arxiv.org/"))
    }
    assert not loaded and not links, (loaded, links)
