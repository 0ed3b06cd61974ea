# `make` lists what there is. Nothing needs to be installed before but Python 3.10+ with venv; the rest goes to .venv.
PYTHON ?= python3
VENV ?= .venv
IN = . $(VENV)/bin/activate &&
READY = $(VENV)/.ready
ALL = $(VENV)/.ready-all

# a notebook runs on the kernel of this venv, also where the user has another kernel called python3
export JUPYTER_PREFER_ENV_PATH = 1
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# pip does not compile (that takes a minute); what is imported is compiled once, also where images forbid it: without
# bytecode every process takes 13 seconds to import torch and transformers instead of 5
export PYTHONDONTWRITEBYTECODE =

# Every name=value after make is a parameter of the notebook, as it was typed; the notebook refuses a name that it does not have.
# A newline would end a line of a recipe; the shell puts it back.
define NEWLINE


endef
quote = '$(subst $(NEWLINE),'"$$newline"',$(subst ','\'',$(value $(1))))'
TYPED = $(foreach name,$(filter-out PYTHON VENV,$(.VARIABLES)),$(if $(findstring command line,$(origin $(name))),-p $(name) $(call quote,$(name))))
BEGIN = newline="$$(printf '\n_')" && newline="$${newline%_}" && . $(VENV)/bin/activate &&
PAPERMILL = $(BEGIN) mkdir -p outputs/notebooks && papermill --no-progress-bar --stdout-file -
# The same for a command, which refuses an option that it does not have.
OPTIONS = $(foreach name,$(filter-out PYTHON VENV,$(.VARIABLES)),$(if $(findstring command line,$(origin $(name))),--$(name)=$(call quote,$(name))))

.PHONY: help venv run grid smallest zoo miniatures speed ablations results report site test clean export readme notebook lab

help: ## list the targets
	@echo "make run methods=kd,mp,qat size=l1 task=accept seed=3"
	@echo "                   one run; its parameters are in the second cell of nbs/run.ipynb"
	@echo "make grid tasks=accept seeds=3 dry_run=True"
	@echo "                   a study; its parameters are in the second cell of nbs/grid.ipynb"
	@sed -n 's/^\([a-z ]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-19s%s\n", $$1, $$2 }'
	@echo "The first call installs into .venv: 2.2 GB for run, grid and the result notebooks, 3.1 GB for test, speed and site (torch for CPUs; the build for GPUs is larger)."

venv: $(ALL) ## install everything into .venv

$(VENV)/bin/activate:
	@$(PYTHON) -m venv $(VENV) || { echo "No venv: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }

$(READY): settings.ini setup.py pyproject.toml | $(VENV)/bin/activate
	@echo "Installing what a run needs into $(VENV): 2.2 GB, some minutes, once"
	@$(IN) pip install -q --no-compile -e '.[demo]'
	@touch $@

$(ALL): settings.ini setup.py pyproject.toml | $(VENV)/bin/activate
	@echo "Installing the tests, the runtimes and Ray as well into $(VENV): 3.1 GB in all, some minutes, once"
	@$(IN) pip install -q --no-compile -e '.[dev,demo,e5,runtime,peers,ray]'
	@touch $(READY) $@

run: $(READY) ## train, measure and append one row; the executed notebook is outputs/notebooks/run.ipynb
	@$(PAPERMILL) nbs/run.ipynb outputs/notebooks/run.ipynb $(TYPED)
	@echo "notebook outputs/notebooks/run.ipynb, with a figure of the row"

grid: $(READY) ## make the embedded suite, or the study of the parameters; it resumes, and several can share a folder
	@$(PAPERMILL) nbs/grid.ipynb outputs/notebooks/grid.ipynb $(TYPED)
	@echo "notebook outputs/notebooks/grid.ipynb, with a map of what is done and a table of scores"

smallest: $(READY) ## search for the smallest model of a task that keeps the score; it resumes
	@$(PAPERMILL) nbs/smallest.ipynb outputs/notebooks/smallest.ipynb $(TYPED)
	@echo "notebook outputs/notebooks/smallest.ipynb, with a figure of all that was tried"

zoo: $(ALL) ## the smallest models of three tasks as hub folders in outputs/zoo, beside the uncompressed ones; it resumes
	@$(PAPERMILL) nbs/zoo.ipynb outputs/notebooks/zoo.ipynb -p measure True $(TYPED)
	@echo "notebook outputs/notebooks/zoo.ipynb, folders in outputs/zoo"

miniatures: $(READY) ## distil small BERTs from MiniLM on texts without labels (sizes=4x96 texts=wordnet+mine.txt); it resumes
	@$(BEGIN) combcomp miniatures $(OPTIONS)

speed: $(ALL) ## time training and inference, half an hour (measure=inference: only that); writes outputs/tables/speed_*.csv
	@$(PAPERMILL) nbs/speed.ipynb outputs/notebooks/speed.ipynb -p measure all $(TYPED)

ablations: $(READY) ## make the missing rows of nbs/ablations.ipynb, and its figures
	@$(PAPERMILL) nbs/ablations.ipynb outputs/notebooks/ablations.ipynb $(TYPED)

# Temporary files of a command are in a folder of their own, which is removed when it ends, also after Ctrl-C.
ALONE = TMPDIR=$$(mktemp -d) && export TMPDIR && trap 'rm -rf "$$TMPDIR"' EXIT && trap 'exit 130' INT TERM && $(IN)

# Two workers of one thread each: two of two threads each, on two cores, are many times slower.
test: $(ALL) ## everything CI checks, a quarter of an hour on two cores
	@echo "== 1/5 notebooks are clean"
	@$(IN) python tests/check_sync.py clean
	@echo "== 2/5 combcomp/ is what the notebooks export"
	@$(IN) python tests/check_sync.py export
	@echo "== 3/5 README.md is nbs/index.ipynb; figures and tables are what the committed rows give"
	@$(IN) python tests/check_sync.py readme
	@$(ALONE) OMP_NUM_THREADS=1 python tests/check_sync.py results
	@echo "== 4/5 the other notebooks run"
	@$(ALONE) OMP_NUM_THREADS=1 python tests/run_notebooks.py
	@echo "== 5/5 tests/"
	@$(ALONE) OMP_NUM_THREADS=1 pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=25
	@echo "All five passed."

clean: $(READY) ## strip notebooks of what does not belong into git (nbdev_clean)
	@$(IN) python tests/check_sync.py clean --fix

export: $(READY) ## write combcomp/ from the notebooks (nbdev_export)
	@$(IN) python tests/check_sync.py export --fix

results: $(READY) ## draw all figures and tables again from the committed rows, with the generated prose of their notebooks
	@$(IN) python tests/check_sync.py results --fix

report: $(READY) ## findings, table1 and figure1 as one HTML file, outputs/report.html
	@$(IN) python -c "from combcomp.study.html_report import report; \
		print('written', report([f'nbs/{n}.ipynb' for n in ('findings', 'table1', 'figure1')], 'outputs/report.html'))"

site: $(ALL) ## the notebooks as a static site, _docs/html
	@$(IN) python .site/build.py

readme: $(READY) ## write README.md from nbs/index.ipynb
	@$(IN) python tests/check_sync.py readme --fix

notebook lab: $(READY) ## open the notebooks in JupyterLab
	@$(IN) jupyter lab nbs $(if $(filter 0,$(shell id -u)),--allow-root)
