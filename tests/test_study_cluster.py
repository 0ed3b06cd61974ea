"Grids on Ray, here started on this machine: a worker is killed, and workers that do not see the driver's folder"
import tempfile, threading, time
from pathlib import Path

import psutil, pytest

from combcomp.study.runner import model_file, run
from combcomp.study.plan import runs
from combcomp.study.sweep import grid
from combcomp.study.store import read_row

QUIET = lambda *args, **kwargs: None
FEW = dict(limit=300, epochs=1)


@pytest.fixture
def ray():
    "A Ray of two cores"
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_ray_on_machines_that_do_not_share_a_folder(ray, out):
    todo = runs(["l1"], ["accept"], ["qat", "ptq"], **FEW)
    said, places = [], lambda: {*Path(tempfile.gettempdir()).glob("combcomp-grid-*")}
    before, seen = places(), []
    def log(text, **kwargs): said.append(text); seen.extend(places() - before)
    table = grid(todo, out, engine="ray", log=log, seen_as="/not/a/folder/of/this/machine")
    assert len([t for t in said if t.startswith("[")]) == 3, said
    assert table["id"].tolist() == [c.id for c in todo] and not (out/"leases").exists()
    assert seen and not any(p.exists() for p in seen), "the workers' folder was there, and is gone"
    alone = run(todo[0], out/"alone", log=QUIET)
    assert model_file(todo[0], out).read_bytes() == model_file(todo[0], out/"alone").read_bytes() and alone["score"] == table["score"][0]


def test_ray_survives_a_killed_worker(ray, tmp_path, out):
    "The worker is killed between two checkpoints of a run, and the run's model is that of one that was never killed"
    todo, killed, over = runs(["l1"], ["supersense"], ["", "mp > qat"], limit=200, recipe="v1"), [], threading.Event()
    def death():
        while not killed and not over.is_set():
            workers = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::combcomp")]
            if workers and [*(out/"cache"/"unfinished").rglob("whole.json")]: workers[0].kill(); killed.append(workers[0].pid)
            time.sleep(0.2)
    threading.Thread(target=death, daemon=True).start()
    try: table = grid(todo, out, engine="ray", log=QUIET, checkpoint=1.0)
    finally: over.set()
    assert killed and table["id"].tolist() == [c.id for c in todo]
    for cfg in todo:
        alone = run(cfg, tmp_path/"alone", log=QUIET)
        assert alone["score"] == read_row(cfg.id, out)["score"] and model_file(cfg, out).read_bytes() == model_file(cfg, tmp_path/"alone").read_bytes()
