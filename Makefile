# Two commands do everything, set-up included: `make demo` and `make test`. `make install` does the set-up alone.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Threads that wait let others run: spinning ones make a shared machine ten times slower.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test install lint types pytest clean

demo: $(INSTALLED)
	@echo "Meta-training two rules on the digits 0 to 4, then racing them against Adam on 5 to 9: some four minutes"
	@$(BIN)/python -m meta_train +experiment=demo rule=per_parameter name=PerParameter out=out/demo/per_parameter
	@$(BIN)/python -m meta_train +experiment=demo rule=functional name=Functional out=out/demo/functional
	@$(BIN)/python -m benchmark suite=demo

test: lint types pytest

lint: $(INSTALLED)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(INSTALLED)
	@$(BIN)/pyright

pytest: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 # one thread a process: two processes of two threads thrash

install: $(INSTALLED)

# Made again only when the requirements change, so that a second run starts at once.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("lopt needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "Installing into .venv (a few minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,dev]'
	@# timm asks for torchvision, which has no build beside this torch, and runs without what it needs it for.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps timm
	@touch $@

clean:
	rm -rf .venv out runs
