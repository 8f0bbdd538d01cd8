# `make demo` and `make test` set up what they need: a virtual environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# The demo's network templates come with nilearn, its models are small: no download, some minutes.
DEMO_OPTIONS := --model stca ica dualregression --templates seitzman2018 --resolution 8 --sloppy \
	--nuisance high_pass wm_csf --fd-thresh 0.5 --stride 2 --n-surrogates 20 --device cpu

.PHONY: demo test lint setup containers clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@

demo: $(READY)
	rm -rf demo
	$(BIN)/python -m bids_fbn.simulate demo/input --participants 2 --volumes 240 --noise 0.25 --dwell 40 --seed 1
	$(BIN)/python run.py demo/input demo/output participant --work-dir demo/work $(DEMO_OPTIONS)
	$(BIN)/python run.py demo/input demo/output group --work-dir demo/work
	@echo "Open these in a browser: file://$(CURDIR)/demo/output/sub-01.html"
	@echo "                         file://$(CURDIR)/demo/output/group/group_report.html"

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# As root on Debian or Ubuntu: builds both images and runs them as docs/containers.md says, and a
# cluster of one node, as docs/hpc.md does.
containers: $(READY)
	containers/slurm-test --python $(CURDIR)/$(BIN)/python || [ $$? = 3 ]
	containers/test

clean:
	rm -rf demo work $(VENV)
