"The notebook of GLUE studies on a small study with known answers: what was not learned, twelve configurations, two sizes"

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest

from combcomp.study import figures
from conftest import NBS, code_of
from combcomp.spec import SUBSETS, Run, canonical, subsets
from combcomp.study.bootstrap import above_guessing, bootstrap_scores
from combcomp.study.claims import CLAIMS, UNTESTED, Evidence, verdicts
from combcomp.study.plan import configurations
from combcomp.study.reductions import max_reduction, study_rows
from combcomp.study.store import load_many_predictions, load_predictions, load_results

SIZES = dict(a=(90, 1.8), b=(30, 1.2), c=(9, 0.6))  # megabytes, logit of being right
EXAMPLES = 240
TRIMMED = [canonical(f"{m},vocab(rows=8000)".strip(",")) for m in SUBSETS]


def make(folder, tasks=("rte", "sst2", "stsb")):
    """Rows and predictions: nobody learns rte; int8 is four times smaller, a zero in a file costs a bit

    Half of the vocabulary is half of the size, and is made at two of three sizes."""
    rng, rows, arrays = np.random.default_rng(0), [], {}
    for task in tasks:
        labels = rng.permutation(np.arange(EXAMPLES) % 20 < 11).astype(np.uint8)
        labels = rng.uniform(0, 5, EXAMPLES).astype(np.float32) if task == "stsb" else labels
        hard = rng.normal(0, 1.5, EXAMPLES)
        arrays[f"labels/{task}"] = labels
        for size, (mb, logit) in SIZES.items():
            for methods in configurations() + TRIMMED * (size != "c"):
                gain = 0.3 * ("kd" in methods) - 0.05 * ("qat" in methods) - 0.1 * ("mp" in methods)
                noise = rng.normal(0, 0.5, EXAMPLES)
                if task == "rte":
                    predicted = np.where(rng.random(EXAMPLES) < 0.04, 0, 1).astype(np.uint8)
                elif task == "stsb":
                    predicted = (labels + (3 - logit - gain) * (hard + noise)).astype(np.float32)
                else:
                    right = hard + noise + logit + gain > 0
                    predicted = np.where(right, labels, 1 - labels).astype(np.uint8)
                numbers = np.corrcoef(predicted, labels)[0, 1], (predicted == labels).mean()
                zeros = 0.4 if "0.4" in methods else 0.6 if "mp" in methods else 0.0
                quarter = (4 if "qat" in methods else 1) * (2 if "vocab" in methods else 1)
                cfg = Run(task=task, methods=methods, limit=100)
                id = f"{cfg.id}-{size}"
                rows.append(
                    dict(family="miniature", size=size, task=task, methods=methods, seed=0, limit=100)
                    | dict(epochs=np.nan, batch_size=32, lr=np.nan, max_length=128, recipe=cfg.recipe)
                    | dict(split="validation", id=id, score=100 * numbers[task != "stsb"])
                    | dict(metric="pearson" if task == "stsb" else "accuracy", eval_examples=EXAMPLES)
                    | dict(majority=0.0 if task == "stsb" else 100 * labels.mean(), train_examples=100)
                    | dict(matthews=numbers[0] if task == "rte" else np.nan)
                    | dict(mb_paper=mb * (1 - zeros) / quarter)
                    | dict(mb_file=mb * ((1 - zeros) / quarter + (zeros > 0) / 32))
                )
                arrays[id], arrays[f"task/{id}"] = predicted, np.array(task)
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    np.savez(folder / "predictions.npz", **arrays)
    return folder


def run_cells(source, **parameters):
    "Run the code of a notebook here, with parameters behind its first cell"
    names = {}
    try:
        with plt.rc_context():
            for i, cell in enumerate(source):
                exec(cell, names)
                names.update({} if i else parameters)
    finally:
        plt.close("all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("glue") / "results")


@pytest.fixture(scope="module")
def rows(folder):
    return study_rows(load_results(folder), "miniature", limits=100, methods="kd,mp,qat")


@pytest.fixture(scope="module")
def made(folder):
    "Names of the figures that the notebook draws, and its tables; to save figures takes longest and is tested elsewhere"
    into, drawn = folder.parent / "made", []
    how = dict(results=str(folder), into=str(into), tasks="rte,sst2,stsb", limits="100")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", lambda fig, name, folder: drawn.append(name))
        run_cells(code_of(NBS / "glue.ipynb"), **how)
    return drawn, {p.stem: pd.read_csv(p).fillna("") for p in (into / "outputs/tables").glob("*.csv")}


@pytest.fixture
def tables(made):
    return made[1]


def test_both_sets_of_tasks_have_their_figures(made):
    twice = [
        f"glue_{name}{end}" for name in ("table1", "figure1", "interactions") for end in ("", "_learned")
    ]
    once = ["glue_figure1_tasks", "glue_interactions_tasks", "glue_vocabulary"]
    assert sorted(made[0]) == sorted([*twice, *once])


def test_a_task_at_chance_is_shown_and_not_in_the_mean_of_the_learned(rows, tables):
    assert tables["glue_learned"].set_index("task")["learned"].to_dict() == dict(
        rte="no", sst2="yes", stsb="yes"
    )
    table = tables["glue_uncompressed"].set_index("task")
    plain = rows[rows["methods"] == ""]
    for size in SIZES:
        of_task = plain[plain["size"] == size].set_index("task")["score"]
        shown = {
            name: float(table.loc[f"mean of {name}", size].split()[0])
            for name in ("all 3 tasks", "2 learned tasks")
        }
        assert shown["all 3 tasks"] == pytest.approx(of_task.mean(), abs=0.051)
        assert shown["2 learned tasks"] == pytest.approx(of_task[["sst2", "stsb"]].mean(), abs=0.051)
        assert table.loc["rte (not learned)", size] == f"({of_task['rte']:.1f})"
    assert {*tables["glue_interactions_tasks"]["task"]} == {"rte (not learned)", "sst2", "stsb"}


def test_every_configuration_is_in_the_table(tables):
    "Twelve at each size, by both columns of megabytes, for both sets of tasks; Table 1 has the eight combinations"
    table = tables["glue_figure1"]
    groups = table.groupby(["mean over", "size column", "size"])["methods"].agg(set)
    assert len(groups) == 2 * 2 * len(SIZES)
    assert all(found == {m or "none" for m in configurations()} for found in groups)
    assert len(configurations()) == 12
    for name in ("glue_table1", "glue_table1_file"):
        assert {*tables[name]["methods"]} == {m or "none" for m in SUBSETS}


def test_a_smaller_vocabulary_is_a_fourth_factor(rows, tables):
    "Only at the sizes that have all sixteen, and not in the study of three methods"
    assert not rows["methods"].str.contains("vocab").any() and len(rows) == 3 * 12 * len(SIZES)
    effects, reductions = tables["glue_vocabulary"], tables["glue_vocabulary_table1"]
    assert len(effects) == 15 and {*reductions["methods"]} == {
        m or "none" for m in subsets(["kd", "mp", "qat", "vocab"])
    }
    alone = effects.set_index("effect").loc["vocab"]
    factors = [float(text.split()[0]) for name, text in alone.items() if name.startswith("factorial")]
    assert len(factors) == 2 and all(1.6 < f < 2.5 for f in factors)


def test_reductions_differ_by_the_two_sizes_where_they_must(rows, tables):
    "The file pays for the places of the zeros; without pruning both are the same here"
    both = tables["glue_table1_intervals"].query(
        "`mean over` == '2 learned tasks' and average == 'mean curve'"
    )
    both = both.pivot(index=["size", "methods"], columns="size column", values="end")
    pruned = both.index.get_level_values("methods").isin(["mp,qat", "kd,mp,qat"])
    assert (both["mb_file"] < both["mb_paper"])[pruned].any() and not (
        both["mb_file"] > both["mb_paper"]
    ).any()
    unpruned = ~both.index.get_level_values("methods").str.contains("mp")
    assert np.allclose(both["mb_file"][unpruned], both["mb_paper"][unpruned])
    own = max_reduction(rows[rows["task"] != "rte"], 0.5, "mb_file", "curve").set_index(["size", "methods"])
    assert np.isclose(both["mb_file"]["a", "kd,mp,qat"], own["end"]["a", "kd,mp,qat"], atol=1e-3)


def test_thirteen_claims_for_each_set_and_size(tables):
    claims = tables["glue_claims"].groupby(["mean over", "size column"], sort=False)
    assert [len(t) for _, t in claims] == [13] * 4
    for _, table in claims:
        verdict = table.set_index("claim")["verdict"]
        assert {*CLAIMS} < {*verdict.index} and verdict["QAT saves more than KD"] == "held"
        assert (verdict == UNTESTED).sum() == 2  # embeddings that were pruned, and LARGE


def test_a_claim_is_judged_by_the_column_it_is_given(rows, folder):
    draws = bootstrap_scores(rows, folder, n=100)
    paper, file = (verdicts(Evidence(rows, draws, size_col=c), rows, folder) for c in ("mb_paper", "mb_file"))
    claim = "all three save more than QAT with MP"
    assert paper.loc[claim, "Table 1"] == file.loc[claim, "Table 1"]
    assert (paper["ours"] != file["ours"]).any() and {*paper["seeds"]} == {
        "rte 1 seed; sst2 1 seed; stsb 1 seed"
    }


def test_learning_is_judged_in_pairs(rows, folder):
    "On the same examples: a model that nearly always gives the most frequent answer differs from it by little"
    draws = bootstrap_scores(rows, folder, n=200)
    table = above_guessing(rows, draws, folder).set_index(["task", "size"])
    assert table["learned"].groupby("task").first().to_dict() == dict(rte=False, sst2=True, stsb=True)
    assert (table.loc["stsb", "guessing"] == 0).all() and (table["lower"] <= table["above"]).all()
    alone = draws.loc[("miniature", "rte", "a", "")]
    width = table.loc[("rte", "a"), "upper"] - table.loc[("rte", "a"), "lower"]
    assert width < (alone.quantile(0.975) - alone.quantile(0.025)) / 2


def test_many_predictions_are_those_of_each_run(rows, folder):
    many = load_many_predictions(rows["id"], folder)
    assert len(many) == len(rows)
    for id in rows["id"][::17]:
        for found, one in zip(many[id], load_predictions(id, folder)):
            assert np.array_equal(found, one)
    with pytest.raises(FileNotFoundError, match="no predictions of run nowhere"):
        load_many_predictions([rows["id"][0], "nowhere"], folder)


def test_without_rows_it_says_how_to_make_them(folder):
    with pytest.raises(ValueError, match="no rows of miniature with tasks=cola .*combcomp grid"):
        run_cells(code_of(NBS / "glue.ipynb"), results=str(folder), tasks="cola", limits="100")
