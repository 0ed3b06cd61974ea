"Grids on Ray, here started on this machine: a worker is killed, and workers that do not see the driver's folder"

import tempfile, threading, time
from pathlib import Path

import psutil, pytest

from conftest import small_disk, tiny_family

from combcomp import Run
from combcomp.basics import DiskError
from combcomp.study.runner import model_file, run
from combcomp.study.plan import runs
from combcomp.study.sweep import grid
from combcomp.study.store import read_row

QUIET = lambda *args, **kwargs: None
TINY = tiny_family()
FEW = dict(limit=300, epochs=1)


@pytest.fixture(scope="module")
def ray():
    "A Ray of two cores, one for all tests of this file, since it takes seconds to begin"
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_ray_on_machines_that_do_not_share_a_folder(ray, out):
    todo = runs(["l1"], ["accept"], ["qat", "ptq"], family=TINY, **FEW)
    said, places = [], lambda: {*Path(tempfile.gettempdir()).glob("combcomp-grid-*")}
    before, seen = places(), []

    def log(text, **kwargs):
        said.append(text)
        seen.extend(places() - before)

    table = grid(todo, out, engine="ray", log=log, seen_as="/not/a/folder/of/this/machine")
    assert len([t for t in said if t.startswith("[")]) == 3, said
    assert table["id"].tolist() == [c.id for c in todo] and not (out / "leases").exists()
    assert seen and not any(p.exists() for p in seen), "the workers' folder was there, and is gone"
    alone = run(todo[0], out / "alone", log=QUIET)
    assert (
        model_file(todo[0], out).read_bytes() == model_file(todo[0], out / "alone").read_bytes()
        and alone["score"] == table["score"][0]
    )


def test_ray_survives_a_killed_worker(ray, tmp_path, out):
    "The worker is killed between two checkpoints of a run, and the run's model is that of one that was never killed"
    todo, killed, over = (
        runs(["l1"], ["supersense"], ["", "mp > qat"], family=TINY, limit=200, epochs=20, recipe="v1"),
        [],
        threading.Event(),
    )

    def death():
        while not killed and not over.is_set():
            workers = [
                p
                for p in psutil.process_iter(["cmdline"])
                if (p.info["cmdline"] or [""])[0].startswith("ray::combcomp")
            ]
            if workers and [*(out / "cache" / "unfinished").rglob("whole.json")]:
                workers[0].kill()
                killed.append(workers[0].pid)
            time.sleep(0.05)

    threading.Thread(target=death, daemon=True).start()
    try:
        table = grid(todo, out, engine="ray", log=QUIET, checkpoint=0.1)
    finally:
        over.set()
    assert killed and table["id"].tolist() == [c.id for c in todo]
    for cfg in todo:
        alone = run(cfg, tmp_path / "alone", log=QUIET)
        assert (
            alone["score"] == read_row(cfg.id, out)["score"]
            and model_file(cfg, out).read_bytes() == model_file(cfg, tmp_path / "alone").read_bytes()
        )


def test_a_full_disk_of_a_worker_ends_the_grid_with_its_own_words(ray, tmp_path, cache):
    "On a real small disk, where one can be mounted; no run counts as failed"
    with small_disk(tmp_path / "disk", 2, cache) as disk:
        with pytest.raises(DiskError, match="MB are free, and miniature 2x32 .* needs about") as stopped:
            cfg = Run(family="miniature", size="2x32", task="accept", **FEW)
            grid([cfg], disk, engine="ray", log=QUIET)
        assert "ray::" not in str(stopped.value) and not (disk / "failures").exists()


def holders(folder):
    "The processes that hold leases of runs"
    found = []
    for lease in folder.glob("leases/*.lease"):
        try:
            found.append(psutil.Process(int(lease.read_text().split("pid=")[1].split()[0])))
        except (OSError, IndexError, psutil.Error):
            pass
    return found


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False])
def test_three_machines_two_of_which_die(tmp_path, out, shared):
    "One is killed while it trains and one while it saves; all runs are made, equal to those of one process, none twice"
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    ray.shutdown()  # that of the other tests

    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    for node in "abc":  # each has a folder of its own for temporary files
        (tmp_path / node).mkdir()
        cluster.add_node(num_cpus=1, env_vars=dict(TMPDIR=str(tmp_path / node)))
    ray.init(address=cluster.address, log_to_driver=False)
    todo = runs(["l1"], ["accept"], ["", "mp", "qat", "mp,qat", "ptq"], seeds=(0, 1), limit=300, recipe="v1")
    killed, over, said = [], threading.Event(), []

    def folders():
        "Where runs are made"
        return [out] if shared else [*tmp_path.glob("[abc]/combcomp-grid-*")]

    def kill_a_machine(sign):
        "Kill a worker and its raylet once a folder shows the sign"
        while not over.is_set():
            for folder in folders():
                if [*folder.glob(sign)] and (some := holders(folder)):
                    raylet = some[0].parent()
                    for process in [*raylet.children(recursive=True), raylet]:
                        process.kill()
                    killed.append(sign)
                    return
            time.sleep(0.001)

    def death():
        kill_a_machine("cache/unfinished/*/stage-1/checkpoint-*")
        time.sleep(5)
        kill_a_machine("models/.writing-*")

    threading.Thread(target=death, daemon=True).start()
    try:
        seen_as = "" if shared else "/not/a/folder/of/these/machines"
        table = grid(
            todo, out, engine="ray", log=lambda t, **k: said.append(t), checkpoint=0.3, seen_as=seen_as
        )
    finally:
        over.set()
        ray.shutdown()
        cluster.shutdown()
    assert len(killed) == 2, (killed, said)
    assert table["id"].tolist() == [c.id for c in todo] and not [*(out / "failures").glob("*")]
    ended = [t.split("minilm")[1].split("  ")[0] for t in said if t.startswith("[")]
    assert len(ended) == len({*ended}) == len(todo), ended
    for cfg in todo:
        alone = run(cfg, tmp_path / "alone", log=QUIET)
        assert (
            alone["score"] == read_row(cfg.id, out)["score"]
            and model_file(cfg, out).read_bytes() == model_file(cfg, tmp_path / "alone").read_bytes()
        )
