# `make` lists what there is. Nothing needs to be installed before but Python 3.10+ with venv; the rest goes to .venv.
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/.ready
IN = . $(VENV)/bin/activate &&

# a notebook runs on the kernel of this venv, also where the user has another kernel called python3
export JUPYTER_PREFER_ENV_PATH = 1
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Parameters of `make run`. They count only as `name=value` after make; an environment variable `size` stays outside.
methods = kd,qat
PARAMETERS = family size task seed limit epochs batch_size lr max_length teacher recipe split measure report_to force outputs
GRID = family sizes tasks methods sparsities seeds limits epochs batch_size engine workers measure report_to retry_failed dry_run outputs
quoted = '$(subst ','\'',$($(1)))'
typed = $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
wrong = $(strip $(filter-out $(1) PYTHON VENV,$(typed)))
given = $(foreach p,$(1),$(if $(filter command,$(firstword $(origin $(p)))),-p $(p) $(call quoted,$(p))))

.PHONY: help venv run grid speed ablations results report site test clean export readme notebook lab

help: ## list the targets
	@echo "make run methods=kd,mp,qat size=l1 task=accept seed=3    one run; parameters: methods $(PARAMETERS)"
	@echo "make grid dry_run=True    a study; parameters: $(GRID)"
	@sed -n 's/^\([a-z ]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

venv: $(READY) ## install everything into .venv

$(READY): settings.ini setup.py pyproject.toml
	@echo "Installing combcomp and what it stands on into $(VENV): about 2 GB, some minutes, once"
	@$(PYTHON) -m venv $(VENV) || { echo "No venv: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@$(IN) pip install -q -e '.[dev,demo,runtime,peers,ray]'
	@touch $@

run: $(READY) ## train, measure and append one row; the executed notebook goes to outputs/notebooks
	$(if $(call wrong,methods $(PARAMETERS)),$(error make run: no parameter is called $(call wrong,methods $(PARAMETERS)); there are methods $(PARAMETERS)))
	@mkdir -p outputs/notebooks
	@$(IN) papermill nbs/run.ipynb outputs/notebooks/run.ipynb --no-progress-bar --stdout-file - -p methods $(call quoted,methods) $(call given,$(PARAMETERS))
	@echo "notebook outputs/notebooks/run.ipynb, with a picture of it"

grid: $(READY) ## make the embedded suite, or the study that the parameters name; may be interrupted and shared
	$(if $(call wrong,$(GRID)),$(error make grid: no parameter is called $(call wrong,$(GRID)); there are $(GRID)))
	@mkdir -p outputs/notebooks
	@$(IN) papermill nbs/grid.ipynb outputs/notebooks/grid.ipynb --no-progress-bar --stdout-file - $(call given,$(GRID))
	@echo "notebook outputs/notebooks/grid.ipynb, with a map of what is done and a table of scores"

speed: $(READY) ## time training and inference, half an hour (measure=inference: that only); writes outputs/tables/speed_*.csv
	@mkdir -p outputs/notebooks
	@$(IN) papermill nbs/speed.ipynb outputs/notebooks/speed.ipynb --no-progress-bar --stdout-file - -p measure $(if $(measure),$(call quoted,measure),all)

ablations: $(READY) ## make the rows of nbs/ablations.ipynb that are missing, and its figures
	@mkdir -p outputs/notebooks
	@$(IN) papermill nbs/ablations.ipynb outputs/notebooks/ablations.ipynb --no-progress-bar --stdout-file -

# Temporary files of one command in a folder of their own, which goes when it ends, also by Ctrl-C: nbdev_test's workers leave theirs.
ALONE = TMPDIR=$$(mktemp -d) && export TMPDIR && trap 'rm -rf "$$TMPDIR"' EXIT && trap 'exit 130' INT TERM && $(IN)

# Two workers of one thread each: two of two threads each, on two cores, are many times slower.
test: $(READY) ## everything CI checks
	@echo "== 1/5 notebooks are clean"
	@$(IN) python tests/check_sync.py clean
	@echo "== 2/5 combcomp/ is what the notebooks export"
	@$(IN) python tests/check_sync.py export
	@echo "== 3/5 README.md is nbs/index.ipynb; figures and tables are what the committed rows give"
	@$(IN) python tests/check_sync.py readme
	@$(ALONE) OMP_NUM_THREADS=2 python tests/check_sync.py results
	@echo "== 4/5 the notebooks run"
	@$(ALONE) OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing
	@echo "== 5/5 tests/"
	@$(ALONE) OMP_NUM_THREADS=1 pytest -q -n 2 --dist loadfile --no-loadscope-reorder
	@echo "All five passed."

clean: $(READY) ## strip notebooks of what does not belong into git (nbdev_clean)
	@$(IN) python tests/check_sync.py clean --fix

export: $(READY) ## write combcomp/ from the notebooks (nbdev_export)
	@$(IN) python tests/check_sync.py export --fix

results: $(READY) ## make table1, figure1 and findings from the released rows: figures/, outputs/tables/ and their prose
	@$(IN) python tests/check_sync.py results --fix

report: $(READY) ## the three result notebooks as one HTML file, outputs/report.html
	@$(IN) python -c "from combcomp.report import report; print('written', report(['nbs/findings.ipynb', 'nbs/table1.ipynb', 'nbs/figure1.ipynb'], 'outputs/report.html'))"

site: $(READY) ## the notebooks as a static site, _docs/html
	@$(IN) python .site/build.py

readme: $(READY) ## write README.md from nbs/index.ipynb
	@$(IN) python tests/check_sync.py readme --fix

notebook lab: $(READY) ## open the notebooks in JupyterLab
	@$(IN) jupyter lab nbs $(if $(filter 0,$(shell id -u)),--allow-root)
