"The training recipe: its versions in ids and tables, held-out data, regressions, and texts that only a teacher labels"

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_family

from combcomp import Run, load_results, run, unpack
from combcomp.spec import RECIPES, Recipe, recipe_of
from combcomp.study.runner import model_file
from combcomp.models.encoders import load_tokenizer, predict
from combcomp.study.store import load_predictions
from combcomp.study.reductions import points
from combcomp.data.tasks import task_of
from combcomp.data.wordnet import wordnet
from combcomp.data.loading import load_task

QUIET = lambda *args, **kwargs: None
TINY = tiny_family()
FEW = dict(family=TINY, size="l1", limit=64, epochs=1)


@pytest.fixture(scope="module", autouse=True)
def dictionary():
    "WordNet from the project's own cache: that of a test is gone after it"
    wordnet()


def test_released_rows_have_the_ids_of_their_fields():
    "All are rows of the present version"
    table = load_results(own=False)
    of = lambda row: Run(**{f.name: None if row[f.name] != row[f.name] else row[f.name] for f in fields(Run)})
    assert [of(r).id for r in table.to_dict("records")] == table["id"].tolist()
    assert {*table["recipe"].str.partition("(")[0]} == {"v2"}


def test_the_default_of_a_recipe_is_not_a_change_of_it():
    assert Run(recipe=f"v2(dropout={Recipe().dropout})") == Run() and recipe_of("v1") == RECIPES["v1"]
    assert Run(recipe="v1").id != Run().id != Run(recipe="v2(dropout=0.5)").id
    assert Run(recipe="v1").epochs == 3.0 and Run().epochs is None


def test_rows_of_two_recipes_are_never_one_curve():
    row = dict(family="minilm", size="l1", task="wic", methods="", seed=0, score=70.0, mb_paper=5.0)
    table = pd.DataFrame([dict(row, recipe="v1"), dict(row, recipe="v2", size="l2", mb_paper=9.0)])
    with pytest.raises(ValueError, match="trained with recipe v1, v2"):
        points(table)


@pytest.mark.parametrize("task", ("accept", "glosssim"))
def test_held_out_rows_are_of_the_training_set_and_not_trained_on(task):
    whole, held = load_task(task), load_task(task, split="heldout")
    rows = lambda split: {tuple(r[t] for t in task_of(task).texts) for r in split}
    assert (len(held["train"]), len(held["validation"])) == (3200, 800)
    assert rows(held["train"]) | rows(held["validation"]) == rows(whole["train"])
    assert not rows(held["train"]) & rows(held["validation"])
    assert not rows(held["validation"]) & rows(whole["validation"])


@pytest.mark.parametrize(
    "task, methods", [("supersense", "kd(transfer=100, augment=0)"), ("glosssim", "kd(transfer=50),mp,qat")]
)
def test_texts_that_only_the_teacher_labels_reach_the_student(out, task, methods):
    said = []
    cfg = Run(task=task, methods=methods, **FEW)
    row = run(cfg, out, log=lambda text, **k: said.append(text))
    further = 100 if task == "supersense" else 50
    assert row["transfer_examples"] == further and row["train_examples"] >= 64 + further
    assert any(f"the teacher labels {further} transfer texts" in text for text in said)
    assert any("further texts" in text for text in said)


def test_a_compressed_regression_is_what_its_file_says(out):
    "Standardised training leaves nothing behind: the packed model predicts what was evaluated"
    cfg = Run(task="glosssim", methods="mp,qat", **FEW)
    row = run(cfg, out, log=QUIET)
    task, data = task_of("glosssim"), load_task("glosssim")["validation"]
    predicted, labels = load_predictions(cfg.id, out)
    again = predict(unpack(model_file(cfg, out)), load_tokenizer(TINY, "l1"), data, task.texts)
    assert np.array_equal(again[:, 0], predicted) and np.allclose(labels, data["label"])
    assert abs(predicted.mean() - labels.mean()) < 0.2, "it begins at the mean of the labels"
    assert row["epochs_trained"] == 1 and row["steps"] == 2


def test_small_sets_are_passed_over_until_there_are_steps(out):
    row = run(Run(family=TINY, size="l1", task="accept", limit=32), out, log=QUIET)
    assert row["epochs_trained"] == Recipe().max_epochs and row["steps"] == 20
    assert row["learning_rate"] == Recipe().rate


def test_glue_without_a_limit_has_no_transfer_texts():
    "And it is said, not an error: everything has a label already"
    from combcomp.study.schedule import transfer_texts

    assert transfer_texts(Run(task="rte", methods="kd")) == 0
    assert transfer_texts(Run(task="rte", methods="kd", limit=1000)) == 2490 - 1000
    assert transfer_texts(Run(methods="kd", recipe="v1")) == 0


@pytest.mark.parametrize("task, same", [("accept", True), ("glosssim", False)])
def test_a_rate_for_pairs_changes_tasks_of_two_texts_alone(out, task, same):
    second, third = (
        Run(task=task, batch_size=16, recipe=recipe, **FEW) for recipe in ("v2", "v2(pairs=0.4)")
    )
    rates = [run(cfg, out, log=QUIET)["learning_rate"] for cfg in (second, third)]
    a, b = (unpack(model_file(cfg, out)).state_dict() for cfg in (second, third))
    assert all(a[name].equal(b[name]) for name in a) == same
    assert rates[1] == rates[0] * (1 if same else 0.4)
