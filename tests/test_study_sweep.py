"Grids are killed, stopped, doubled and starved here, and in the end have what an undisturbed one has. (Processes are forked from one that has loaded torch.)"

import errno, json, multiprocessing, os, random, shutil, signal, sys, threading, time, warnings
from pathlib import Path
from unittest import mock

import pandas as pd, pytest

from combcomp import Run
from combcomp.basics import DiskError, remove_leftovers
from combcomp.spec import teacher_run
from combcomp.study import runner
from combcomp.study.runner import Context, claimed, has_model, hush, model_file, run
from combcomp.study.plan import runs
from combcomp.study.sweep import GridFailed, Sweep, drop_models, grid, status, work as make_all
from combcomp.study.schedule import estimate, finished, ordered, remaining
from combcomp.study.store import load_rows, read_failure, read_row
from conftest import small_disk, tiny_family
from test_compress_training import lay, tiny

QUIET = lambda *args, **kwargs: None
TINY = tiny_family()
FEW = dict(family=TINY, size="l1", task="accept", limit=300, epochs=1)
SHORT = "v1(kd_transfer=100)"  # few steps for small sets, and few texts for the teacher to label
TODO = runs(
    ["l1"],
    ["supersense"],
    ["", "kd,mp,qat", "mp > qat", "ptq"],
    family=TINY,
    limit=144,
    epochs=10,
    recipe=SHORT,
)

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["combcomp.study.sweep", "combcomp.data.loading", "test_study_sweep"])


def work(folder, begun=None, lease=None, todo=TODO, checkpoint=1.0):
    "What a process does: the grid, a line in a file for each run that it begins"
    import combcomp.basics, torch

    torch.set_num_threads(1)
    hush()
    todo = ordered(todo)
    if lease:
        combcomp.basics.LEASE = lease
    name = None

    def log(text, **kwargs):
        nonlocal name
        if text.startswith(TINY) and " seed " in text and "another" not in text:
            name = text
        line = name if text == name else f"saved {name}" if text.startswith("  score") else None
        if begun and line:
            with open(begun, "a") as f:
                f.write(f"{os.getpid()} {line}\n")

    make_all(Sweep(todo, folder), Context(Path(folder), log, checkpoint), QUIET)


def begin(*args, **kwargs):
    p = processes.Process(target=work, args=args, kwargs=kwargs)
    p.start()
    return p


def contents(folder):
    "All that a grid leaves and that does not depend on the clock"
    volatile = {"started", "seconds", "train_seconds", "examples_per_second"}
    rows = {
        c.id: {k: v for k, v in read_row(c.id, folder).items() if k not in volatile} for c in ordered(TODO)
    }
    return rows, {
        p.name: p.read_bytes() for kind in ("models", "predictions") for p in (Path(folder) / kind).iterdir()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(cache, folder / "cache")
    p = begin(folder, checkpoint=60.0)
    p.join()
    assert p.exitcode == 0
    return contents(folder)


def checkpointed(folder):
    "Has a run been interrupted after a checkpoint?"
    return any((folder / "cache" / "unfinished").glob("*/stage-*/checkpoint-*"))


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.long) for s in range(1, 10))])
def test_killed_again_and_again_and_equal_in_the_end(out, undisturbed, seed, request):
    "One grid is killed up to six times; ten grids are, up to ten times each, with --long"
    chance, kills, inside, seen = random.Random(seed), 0, 0, {}
    most = 10 if request.config.getoption("--long") else 6
    while True:
        p = begin(out, checkpoint=0.1)
        if kills:
            p.join(chance.uniform(0.2, 3.0) if kills < most else None)
        while not kills and p.is_alive() and not checkpointed(out):
            time.sleep(0.01)  # the first kill is in the middle of a training
        if p.is_alive():
            os.kill(p.pid, signal.SIGKILL)
            p.join()
            kills += 1
            inside += checkpointed(out)
        rows = (
            {f.name: f.read_bytes() for f in (out / "runs").glob("*.json")} if (out / "runs").is_dir() else {}
        )
        assert all(
            rows.get(name) == data for name, data in seen.items()
        ), "a finished row was lost or made again"
        assert all(json.loads(data)["id"] + ".json" == name for name, data in rows.items())
        seen = rows
        if p.exitcode == 0:
            break
    assert kills >= 3 and inside and len(seen) == len(ordered(TODO))
    rows, files = contents(out)
    assert (rows, sorted(files)) == (undisturbed[0], sorted(undisturbed[1])) and all(
        files[k] == v for k, v in undisturbed[1].items()
    )
    assert not [*(out / "cache" / "unfinished").iterdir()] and not [
        p for p in out.rglob(".writing-*") if p.parent.name == "runs"
    ]


def test_rows_are_read_while_a_grid_writes_them(out, request):
    "Also right after a process was killed between writing and renaming; 100,000 rows with --long"
    wanted = 100_000 if request.config.getoption("--long") else 3000
    from combcomp.study.store import load_results, save_row

    stop = threading.Event()

    def write():
        n = 0
        while not stop.is_set():
            cfg = Run(seed=(n := n + 1) % 50)
            save_row(dict(read_of(cfg), id=cfg.id), out)

    writer = threading.Thread(target=write)
    writer.start()
    (out / "runs").mkdir(exist_ok=True)
    (out / "runs" / ".writing-0123").write_text("half a r")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reads = 0
            while reads < wanted:
                reads += max(1, len(load_results(out)))
    finally:
        stop.set()
        writer.join()


def read_of(cfg):
    return {**{k: getattr(cfg, k) for k in Run.__dataclass_fields__}, "score": 50.0}


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_grid_and_the_same_command_goes_on(workers, tmp_path, cache):
    "On a real small disk, where one can be mounted"
    with small_disk(tmp_path / "disk", 6, cache) as disk:
        few = FEW | dict(family="miniature", size="2x32")  # of a known size
        todo, filler = [Run(seed=s, **few) for s in (0, 1)], disk / "filler"
        filler.write_bytes(bytes(4 * 10**6))
        said = []
        with pytest.raises(
            DiskError, match=r"MB are free, and miniature 2x32 .* needs about \d+ MB"
        ) as stopped:
            grid(todo, disk, workers=workers, log=lambda t, **k: said.append(t))
        assert (
            "NOT ENOUGH" in said[0]
            and "GB of disk" in said[0]
            and "the same command goes on" in str(stopped.value)
        )
        assert (
            not (disk / "failures").exists()
            and not [p for p in disk.glob(".writing-*")]
            and not [*disk.glob("models/*")]
        )
        filler.unlink()
        for run in todo[workers - 1 :]:  # one after the other, as two models are too much for this disk
            assert len(grid([run], disk, log=QUIET, workers=workers, keep="rows")) == 1
        assert not [*(disk / "models").iterdir()] and len([*(disk / "runs").iterdir()]) == 3 - workers


def test_what_no_disk_holds_is_no_failure_of_the_run(out, monkeypatch):
    "The same where no disk can be mounted: the error of the system, injected where the model is written"
    cfg = Run(**FEW)
    with monkeypatch.context() as m:
        m.setattr("combcomp.study.runner.pack", full)
        with pytest.raises(DiskError, match="cannot be written .*No space left"):
            grid([cfg], out, log=QUIET)
    assert (
        not (out / "failures").exists()
        and not [*out.rglob(".writing-*")]
        and not [*(out / "models").glob("*")]
    )
    assert len(grid([cfg], out, log=QUIET)) == 1


def test_models_that_nothing_needs_any_more_are_deleted(out):
    todo = runs(["l1"], ["supersense"], ["kd", "kd,ptq", "mp"], family=TINY, limit=96, recipe=SHORT)
    grid(todo, out, log=QUIET, keep="rows")
    assert (
        len([*(out / "runs").iterdir()]) == 4
        and not [*(out / "models").iterdir()]
        and len([*(out / "predictions").iterdir()]) == 4
    )


def test_a_damaged_row_is_made_again(out):
    cfg, said = Run(**FEW), []
    grid([cfg], out, log=QUIET)
    whole = (out / "runs" / f"{cfg.id}.json").read_text()
    (out / "runs" / f"{cfg.id}.json").write_text(whole.replace('"score": ', '"score": 1'))
    with pytest.warns(UserWarning, match="1 rows in .* are damaged and left out"):
        assert not len(pd.DataFrame(load_rows(out)))
    table = grid([cfg], out, log=lambda t, **k: said.append(t))
    assert table["score"][0] == json.loads(whole)["score"] and any(
        "it was edited or damaged" in t for t in said
    )
    assert not list(out.rglob(".writing-*"))


def test_leftovers_of_dead_processes_are_removed(out):
    (out / "runs").mkdir()
    old = out / "runs" / ".writing-a"
    old.write_text("x")
    os.utime(old, (0, 0))
    (folder := out / "cache" / ".writing-b").mkdir()
    (folder / "c").write_text("x")
    os.utime(folder / "c", (0, 0))
    os.utime(folder, (0, 0))
    grid([Run(**FEW)], out, log=QUIET)
    assert not old.exists() and not folder.exists()


def test_folders_may_go_while_leftovers_are_looked_for(tmp_path):
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            (tmp_path / "a" / "b" / "c").mkdir(parents=True)
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(2000):
            assert not remove_leftovers(tmp_path)
    finally:
        stop.set()
        thread.join()


def test_a_model_is_kept_while_its_process_measures_it(out):
    "Its row is there, so the run is done; its lease is held, so a grid with keep='rows' leaves the model"
    cfg = Run(**FEW)
    run(cfg, out, log=QUIET)
    with claimed(cfg, out):
        drop_models(Sweep([cfg], out))
        assert has_model(cfg, out)
    drop_models(Sweep([cfg], out))
    assert not has_model(cfg, out)


def test_a_measure_that_fails_is_told_and_the_row_is_kept(out, monkeypatch):
    monkeypatch.setattr("combcomp.study.runner.other_sizes", lambda model: 1 / 0)
    cfg, said = Run(**FEW), []
    grid([cfg], out, measure="file", log=lambda t, **k: said.append(t), check=False)
    assert any("NOT MEASURED ZeroDivisionError" in line for line in said) and read_row(cfg.id, out)["score"]


def test_a_model_that_another_grid_deletes_is_made_again(out, monkeypatch):
    student = Run(task="supersense", methods="kd", family=TINY, size="l1", limit=144, epochs=10, recipe=SHORT)
    teacher, prepare, tried = teacher_run(student), runner.prepare, []

    def too_late(cfg, ctx):
        tried.append(cfg)
        if tried.count(student) == 1:
            model_file(teacher, out).unlink(missing_ok=True)
        return prepare(cfg, ctx)

    monkeypatch.setattr(runner, "prepare", too_late)
    assert len(grid([student], out, log=QUIET)) == 1
    assert [*map(tried.count, (teacher, student))] == [2, 2] and not (out / "failures").exists()


def test_four_processes_and_a_killed_one_make_each_run_once(tmp_path, out, undisturbed):
    log = tmp_path / "log"
    four = [begin(out, log) for _ in range(4)]
    lines = lambda: (
        [l.split(" ", 1) for l in log.read_text().splitlines() if " saved " not in l] if log.is_file() else []
    )
    while len(lines()) < 2:
        time.sleep(0.1)
    time.sleep(1.0)
    victim = lines()[-1][0]
    os.kill(int(victim), signal.SIGKILL)
    for p in four:
        p.join()
    assert sorted(p.exitcode for p in four) == [-9, 0, 0, 0]
    begun = pd.Series([name for pid, name in lines() if pid != victim])
    again = set(begun) & {name for pid, name in lines() if pid == victim}
    assert begun.value_counts().max() == 1 and len(again) <= 1, log.read_text()
    rows, files = contents(out)
    assert rows == undisturbed[0] and all(files[k] == v for k, v in undisturbed[1].items())


def test_a_process_that_is_silent_for_too_long_loses_its_run(tmp_path, out):
    "As a machine that hangs: its lease runs out, another process takes over, and the first one does not write over what the second made"
    cfg = Run(**FEW | dict(limit=3000))
    first = begin(out, tmp_path / "first", 2.0, [cfg])
    while not (tmp_path / "first").is_file():
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGSTOP)
    second = begin(out, tmp_path / "second", 2.0, [cfg])
    second.join()
    assert second.exitcode == 0
    made = (out / "runs" / f"{cfg.id}.json").read_bytes()
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0
    began, saved = (
        [l.split(" ", 1)[1] for l in (tmp_path / name).read_text().splitlines()]
        for name in ("first", "second")
    )
    assert began == saved[:1] and saved[1:] == [f"saved {began[0]}"]
    assert (out / "runs" / f"{cfg.id}.json").read_bytes() == made and not (out / "failures").exists()


def test_stopped_and_continued_around_the_takeover_and_each_run_is_saved_once(tmp_path, out, request):
    """Three grids lose and win leases at random moments; a row that is there never changes, and what is saved is saved once

    Eight stops; 24 with --long."""
    wanted, seeds = (24, 4) if request.config.getoption("--long") else (8, 2)
    few = dict(family=TINY, limit=1000, epochs=2, recipe=SHORT)
    todo = runs(["l1"], ["accept"], ["", "mp", "qat", "mp,qat"], seeds=range(seeds), **few)
    log, chance, stops, seen = tmp_path / "log", random.Random(0), 0, {}
    three = [begin(out, log, 1.0, todo, 0.2) for _ in range(3)]

    def look():
        for f in (out / "runs").glob("*.json") if (out / "runs").is_dir() else ():
            seen.setdefault(f.name, f.read_bytes())
        assert all(
            (out / "runs" / name).read_bytes() == data for name, data in seen.items()
        ), "a row was overwritten"

    while any(p.is_alive() for p in three):
        alive = [p for p in three if p.is_alive()]
        if stops < wanted and log.is_file():
            some = chance.sample(alive, min(len(alive), 2))
            for p in some:
                os.kill(p.pid, signal.SIGSTOP)
            stops += len(some)
            time.sleep(chance.uniform(0.5, 2.0))
            for p in some:
                os.kill(p.pid, signal.SIGCONT)
        time.sleep(chance.uniform(0.1, 0.4))
        look()
    look()
    assert [p.exitcode for p in three] == [0, 0, 0] and stops >= wanted - 2
    saved = pd.Series([l.split(" ", 1)[1] for l in log.read_text().splitlines() if " saved " in l])
    assert len(seen) == len(todo) and sorted(saved.value_counts()) == [1] * len(todo), log.read_text()
    assert not (out / "failures").exists() and not [*out.rglob(".writing-*")]


def test_a_failed_run_is_told_and_can_be_tried_again(tmp_path, out):
    (tmp_path / "mine").mkdir()
    good, bad = Run(**FEW), Run(**FEW | dict(family=str(tmp_path / "mine")))
    said = []
    with pytest.raises(GridFailed, match="1 of 2 runs were not made") as told:
        grid([bad, good], out, log=lambda t, **k: said.append(t))
    record = read_failure(bad.id, out)
    assert (
        record["error"] in str(told.value)
        and "Traceback" in record["traceback"]
        and any("FAILED" in t for t in said)
    )
    assert read_row(good.id, out) and read_row(bad.id, out) is None
    lay(tmp_path / "mine", tiny(num_labels=2))
    with pytest.raises(GridFailed):
        grid([bad, good], out, log=QUIET)
    assert grid([bad, good], out, log=QUIET, retry_failed=True)["id"].tolist() == [bad.id, good.id]
    assert read_failure(bad.id, out) is None


def test_what_needs_a_failed_teacher_is_blocked(out):
    todo = [
        Run(family=TINY, size="l1", methods=m, limit=32, batch_size=16, recipe="v1(rate=1e-9)")
        for m in ("kd", "kd,ptq")
    ]
    with pytest.raises(GridFailed, match="the run that it needs failed"):
        grid(todo, out, log=QUIET)
    assert status(ordered(todo), out)["state"].tolist() == ["done", "failed", "blocked"]


def test_a_run_that_kills_its_process_fails_and_the_others_are_made(out):
    deadly, *others = todo = [Run(methods=m, **FEW) for m in ("mp", "", "qat")]
    marker, victims, over = out / "leases" / f"{deadly.id}.lease", set(), threading.Event()

    def death():
        while not over.is_set():
            try:
                pid = int(marker.read_text().split("pid=")[1].split()[0])
            except (OSError, IndexError):
                pid = None
            if pid and pid != os.getpid() and pid not in victims:
                victims.add(pid)
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    threading.Thread(target=death, daemon=True).start()
    try:
        table = grid(todo, out, workers=2, check=False, log=QUIET)
    finally:
        over.set()
    assert table["id"].tolist() == [c.id for c in others] and len(victims) >= 2
    assert (
        status(todo, out)["state"].tolist() == ["failed", "done", "done"]
        and "2 processes died" in read_failure(deadly.id, out)["message"]
    )


def test_a_teacher_and_its_opinion_are_made_once(out):
    todo = runs(["l1"], ["supersense"], ["kd", "kd,mp", "kd,qat"], family=TINY, limit=160, recipe=SHORT)
    watch = lambda module, name: mock.patch.object(
        sys.modules[f"combcomp.{module}"], name, wraps=getattr(sys.modules[f"combcomp.{module}"], name)
    )
    with (
        watch("study.runner", "compress") as trained,
        watch("study.runner", "encode") as encoded,
        watch("compress.distillation", "predict") as asked,
        watch("compress.distillation", "augment") as augmented,
    ):
        grid(todo, out, log=QUIET)
    assert (
        trained.call_count == 4 and asked.call_count == 3 and encoded.call_count == 2
    )  # a teacher and three students; originals, copies, transfer texts
    assert [c.kwargs["copies"] for c in augmented.call_args_list if c.kwargs["copies"]] == [1]


def test_the_time_left_is_known_after_a_fifth():
    "On the recorded timings of a grid: at every moment after a fifth of the runs, the time that the others take is foretold within 30%"
    rows = pd.read_csv(Path(__file__).with_name("timings.csv"), dtype=dict(methods=str, teacher=str)).fillna(
        dict(methods="", teacher="")
    )
    rows = rows.assign(recipe="v1", split="validation")
    took = finished(rows)
    todo, seconds = [r for r, _ in took], [s for _, s in took]
    assert todo == ordered(todo) and len(todo) > 80
    for n in range(len(todo) // 5, len(todo) * 9 // 10):
        costs = estimate(todo, rows.iloc[:n])
        foretold = remaining(sum(seconds[:n]), sum(costs[:n]), sum(costs[n:]))
        assert (
            0.7 < foretold / sum(seconds[n:]) < 1.3
        ), f"after {n} of {len(todo)}: {foretold:.0f} s, and it took {sum(seconds[n:]):.0f}"


def test_a_tracker_gets_the_loss_under_the_name_of_the_methods(out):
    pytest.importorskip("tensorboardX")
    run(Run(methods="qat,mp", **FEW), out, log=QUIET, report_to="tensorboard")
    (events,) = (out / "trackers").rglob("events*")
    assert events.parent.name == "mp,qat" and b"train/loss" in events.read_bytes()
    with pytest.raises(ImportError, match="pip install"):
        run(Run(**FEW), out, log=QUIET, report_to="wandb")
