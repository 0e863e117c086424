# Each target makes its own virtual environment (.venv) on a fresh machine, and again when the pins change.
#
#   make demo    prepare the bundled scans, score the proposals, draw a picture, pretrain for 150 steps, fine-tune on the
#                labelled ones, segment one that was kept out of all this and tell its Dice
#   make test    the tests but the long ones, in three processes (they wait a third of their time); WORKERS=8 for more, WORKERS=0 for one
#   make test-long   the long ones: real clusters, kills, servers, notebooks from top to bottom; make test-all runs both
#   make test-without-bfloat16   the tests of training on a CPU whose newer instructions are hidden
#   make coverage   branches of pipeline and storage that their tests take
#   make lint    ruff and mypy
#   make audit   known vulnerabilities in the pinned packages; fails where nothing could be compared
#   make sbom OUT=sbom.json   the list of parts (CycloneDX) of what is installed
#   make pins    release/requirements-*.txt: every package of a release with its checksum
#   make docs    the site of docs/ in site/, with every link checked
#   make bench   speed, memory, bytes and kills; the other scripts of benchmarks/ ask for data, --help tells which
#   make quality MANIFEST=M.csv OUT=DIR   proposals against labels, beside other methods; also ablation, held-out

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell $(p) -c 'import ensurepip, sys; print("ok" if (3, 11) <= sys.version_info < (3, 14) else "")' 2>/dev/null),$(p))))
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
WORKERS ?= 3

# A current pip chooses 240 packages in a third of the time that the one of Python 3.11 needs; where no newer one
# can be had, that one does. Modules are compiled when they are first imported, as most never are; higra's at once,
# without its warnings.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# Tests start Python many times: modules that were compiled once are kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

# A file stays in one process, which keeps its fixtures; so does tests/flows as a whole (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

WITH_LONG := $(shell grep -rl --include='test_*.py' 'mark\.long' tests)

.PHONY: demo test test-long test-all test-without-bfloat16 coverage audit sbom pins lint format docs bench quality ablation held-out clean

demo: $(STAMP)
	$(BIN)/mass demo

test: $(STAMP)
	$(PYTEST) -m "not long"

test-long: $(STAMP)
	$(PYTEST) -m long $(WITH_LONG)

test-all: $(STAMP)
	$(PYTEST)

test-without-bfloat16: $(STAMP)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m "not long" \
	  tests/training/network/test_iris.py tests/training/engine/test_trainer.py tests/training/pretraining/test_run.py tests/training/engine/test_optimisation.py

coverage: $(STAMP)
	$(PYTEST) tests/pipeline tests/storage --cov --cov-report=term

audit: $(STAMP)
	$(BIN)/python release/check.py audit

sbom: $(STAMP)
	$(BIN)/python release/check.py sbom "$(or $(OUT),sbom.json)" --python $(BIN)/python

pins: $(STAMP)
	$(BIN)/python release/pins.py
	$(BIN)/python release/pins.py --tools

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)
	@for name in speed components store step flow_overhead kill; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

quality ablation held-out: $(STAMP)
	@test -n "$(MANIFEST)" -a -n "$(OUT)" || { echo "make $@ MANIFEST=manifest.csv OUT=folder"; exit 1; }
	PYTHONPATH=. $(BIN)/python benchmarks/$(subst -,_,$@).py "$(MANIFEST)" "$(OUT)" --workers 2

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mass3d needs Python 3.11, 3.12 or 3.13 with venv (on Debian: apt-get install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	-$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) -c constraints.txt -e '.[dev,docs]'
	$(BIN)/python -W ignore -c 'import higra'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-release .pytest_cache .mypy_cache .ruff_cache build site *.egg-info
