# `make demo` and `make test` alone each create .venv, install and run. Python 3.10 to 3.13.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.10 3.13,$(shell python$(v) -c "print('python$(v)')" 2>/dev/null)) python3)
PY := .venv/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := requirements-mujoco.txt requirements-atari.txt requirements-procgen.txt
DEV_REQUIREMENTS := requirements-dev.txt requirements-convert.txt experiments/requirements.txt
# Where the processor computes in it, that is twice as fast; elsewhere several times as slow.
BFLOAT16 = $(shell $(PY) -c "import torch; print('--bfloat16' * torch.cpu.get_capabilities().get('avx512_bf16', 0))")

.PHONY: demo demo-atari demo-procgen test test-all copies spread inline constraints lint clean

.venv/installed: requirements.txt $(REQUIREMENTS) constraints.txt
	@test -e .venv/bin/pip || $(PYTHON) -m venv .venv
	@$(PY) -c "import sys; (3, 10) <= sys.version_info < (3, 14) or sys.exit('.venv has no Python 3.10 to 3.13: make clean, then make demo PYTHON=…')"
	@echo "installing requirements.txt into .venv (a few minutes, once)"
	@$(INSTALL) -r requirements.txt
	@touch $@

.venv/installed-dev: $(DEV_REQUIREMENTS) .venv/installed
	@$(INSTALL) -r requirements.txt $(addprefix -r ,$(DEV_REQUIREMENTS))
	@touch $@

demo: .venv/installed  ## distil the shipped Hopper teacher into a larger student: three to five minutes
	@$(PY) ppd_mujoco.py --env-id Hopper-v4 --student-size larger --total-timesteps 500000 \
		--eval-every 100000 --episodes 20

demo-atari: .venv/installed  ## distil the shipped CrazyClimber teacher into a new student: four to six minutes with AVX512-BF16
	@$(PY) ppd_atari.py $(BFLOAT16) --total-timesteps 60000 --eval-every 0 --episodes 10

demo-procgen: .venv/installed  ## distil the shipped coinrun teacher into a smaller student: about three minutes with AVX512-BF16
	@$(PY) ppd_procgen.py $(BFLOAT16) --total-timesteps 200000 --eval-every 100000

test: .venv/installed-dev  ## everything that CI runs: minutes on two cores, no GPU
	@$(PY) -m ruff format --check --quiet . && $(PY) -m ruff check --quiet .
	@$(PY) -m pytest -n 2 -m "not slow"

test-all: .venv/installed-dev  ## with the full grids and long comparisons
	@$(PY) -m pytest -n 2

copies: .venv/installed-dev  ## where a function of one name has two bodies
	@$(PY) tests/copies.py

spread: .venv/installed-dev  ## copy a change to all scripts: make spread FROM=ppd_mujoco.py NAMES="Run evaluate"
	@$(PY) tests/copies.py $(FROM) $(NAMES) $(if $(TO),--to $(TO))
	@$(PY) -m ruff check --quiet .

inline: .venv/installed-dev  ## write each script's requirements at its end, for `uv run`
	@$(PY) tests/inline_metadata.py

# setuptools is Python's own; Procgen needs glfw 1, which has no wheels for ARM, and MuJoCo takes any.
constraints:  ## pin what the requirements bring along, after a change of theirs; needs uv
	uv pip compile --quiet --universal --python-version 3.10 --no-annotate \
		--no-emit-package setuptools --no-emit-package glfw $(sort $(REQUIREMENTS) $(DEV_REQUIREMENTS)) --output-file constraints.txt

lint: .venv/installed-dev
	@$(PY) -m ruff format . && $(PY) -m ruff check --fix .

clean:
	rm -rf .venv
