"""Run the notebooks as nbdev_test does, in two processes, those that take long first: it takes them by name, and the
tour, which takes longest, would be last and alone.

    python tests/run_notebooks.py    # all but those that check_sync.py executes
"""

import sys, warnings

from check_sync import REMADE, ROOT
from fastcore.parallel import parallel
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.test import test_nb

LONG = "guides/extend tour study/12_search study/04_sweep".split()
LAST = ["study/05_cluster"]  # its process read WordNet from a folder that is gone afterwards


def in_order():
    "The paths of the notebooks to run"
    nbs = ROOT / "nbs"
    names = {p.relative_to(nbs).with_suffix("").as_posix() for p in nbs.rglob("*.ipynb")}
    names = {n for n in names if not any(part[0] in "._" for part in n.split("/"))} - {*REMADE}
    return [nbs / f"{n}.ipynb" for n in LONG + sorted(names - {*LONG, *LAST}) + LAST]


def run(path, **options):
    "Whether a notebook passes, and its seconds; what it ignores, the next one in this process does not"
    with warnings.catch_warnings():
        return test_nb(path, **options)


def main():
    paths, config = in_order(), get_config(path=ROOT)
    with working_directory(ROOT / "nbs"):
        results = parallel(
            run, paths, n_workers=2, skip_flags=config.tst_flags.split(), basepath=ROOT, do_print=False
        )
    for path, (passed, seconds) in sorted(zip(paths, results), key=lambda r: -r[1][1]):
        if seconds >= 5 or not passed:
            print(f"{seconds:4.0f} s  {path.relative_to(ROOT)}{'' if passed else '  FAILED'}")
    sys.exit(not all(passed for passed, _ in results))


if __name__ == "__main__":
    import run_notebooks  # a notebook takes the place of __main__ in a process, which must find `run` afterwards

    run_notebooks.main()
