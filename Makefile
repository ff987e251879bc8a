# make serve [MODEL=dir ARGS="..." PORT=8000]   set up, build, serve (ARGS="--device hpu": emulated)
# make test                                    set up, build, run the tests
# make test-all                                with the full products of what make test samples
# make lint | bench | build | venv | clean

PYTHON ?= python3
MODEL ?= examples/models/tiny-story
PORT ?= 8000
ARGS ?=
TESTS ?= tests
# Two processes finish the tests soonest on two cores, each with a single compute thread.
JOBS ?= 2

DEVICE := $(or $(VLLM_TARGET_DEVICE),cpu)
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.done
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
PIP := $(BIN)/python -m pip install --disable-pip-version-check
TORCH = $(shell grep '^torch==' requirements-cpu.txt)
NATIVE := $(shell find csrc -type f 2>/dev/null)
EMULATOR := $(shell find tools/hpu_emulator -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.toml' | grep -v /build/)
CXX_FILES := $(shell find csrc tools/hpu_emulator/csrc tests -name '*.cpp' -o -name '*.h' 2>/dev/null)
# An emulated Gaudi, for those who ask for one: make serve ARGS="--device hpu"
EMULATED := $(if $(and $(findstring --device hpu,$(subst =, ,$(ARGS))),$(filter cpu,$(DEVICE))),yes)

.DELETE_ON_ERROR:
.PHONY: serve test test-all lint bench venv build clean help

help:
	@sed -n '1,4s/^# //p' Makefile

serve: build $(if $(EMULATED),$(DONE)/emulator)
	@$(if $(EMULATED),PYTHONPATH=$(VENV)/hpu_emulator) $(BIN)/vllm serve $(MODEL) --port $(PORT) $(ARGS)

test: build $(DONE)/emulator $(DONE)/dev $(DONE)/browser
	$(PYTEST) -m "not product" $(TESTS)

test-all: build $(DONE)/emulator $(DONE)/dev $(DONE)/browser
	$(PYTEST) $(TESTS)

lint: $(DONE)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES))

bench: build
	$(BIN)/python benchmarks/quick.py

venv: $(DONE)/requirements

build: $(DONE)/package-$(DEVICE) $(DONE)/native-$(DEVICE)

# Each step leaves a file behind, so that nothing is done twice.

$(DONE)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is too old: Python 3.10 or later is needed (make PYTHON=python3.11 ...)"; exit 1; }
	@echo "==> Python environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no venv: install it with 'apt-get install python3-venv'"; rm -rf $(VENV); exit 1; }
	@mkdir -p $(DONE) && touch $@

# On Gaudi torch comes with the container, so the environment shows what is installed there.
$(DONE)/torch: $(DONE)/venv requirements-cpu.txt
ifeq ($(DEVICE),hpu)
	@sed -i 's/^include-system-site-packages.*/include-system-site-packages = true/' $(VENV)/pyvenv.cfg
	@$(BIN)/python -c 'import torch' || \
	  { echo "torch is not installed: on hpu it comes with the Gaudi container"; exit 1; }
else
	@echo "==> $(TORCH) (about 200 MB)"
	@$(PIP) $(TORCH)
endif
	@touch $@

$(DONE)/requirements: $(DONE)/torch requirements-common.txt
	@echo "==> Requirements"
	@$(PIP) --quiet -r requirements-common.txt $(if $(filter hpu,$(DEVICE)),,$(TORCH)) 'setuptools>=77.0.3'
	@touch $@

$(DONE)/package-$(DEVICE): $(DONE)/requirements setup.py pyproject.toml vllm/version.py
	@echo "==> Package"
	@VLLM_TARGET_DEVICE=$(DEVICE) VLLM_BUILD_NATIVE=0 $(PIP) --quiet --no-build-isolation --no-deps -e .
	@touch $@

$(DONE)/native-$(DEVICE): $(DONE)/requirements $(NATIVE)
ifeq ($(DEVICE),cpu)
	@if command -v $${CXX:-g++} >/dev/null; then \
	  echo "==> Native kernels (a minute the first time)"; \
	  $(BIN)/python csrc/build.py --inplace; \
	else \
	  echo "==> No C++ compiler: the kernels will be torch's, several times slower."; \
	  echo "    For fast ones: apt-get install g++ python3-dev, then make build"; \
	fi
endif
	@touch $@

$(DONE)/dev: $(DONE)/requirements requirements-dev.txt requirements-ray.txt requirements-ray-serve.txt constraints-dev.txt
	@echo "==> Tests, linters and clients (about 700 MB)"
	@$(PIP) --quiet -r requirements-dev.txt
	@touch $@

# In a directory of its own, which only what shall see the emulated device has on its path.
$(DONE)/emulator: $(DONE)/requirements $(EMULATOR)
	@if command -v $${CXX:-g++} >/dev/null; then \
	  echo "==> Emulated HPU (a minute or two the first time)"; \
	  $(BIN)/python tools/hpu_emulator/install.py >/dev/null; \
	else \
	  echo "The emulated HPU needs a C++ compiler: apt-get install g++ python3-dev"; exit 1; \
	fi
	@touch $@

# Tests of the page need a browser; without one they are skipped and say so.
$(DONE)/browser:
	@if ! { command -v chromium || command -v google-chrome; } >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "==> Chromium"; \
	    export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && \
	    apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null || \
	    echo "    It could not be installed: the tests of the page will be skipped."; \
	  else \
	    echo "==> No browser: the tests of the page will be skipped (apt-get install chromium)"; \
	  fi; \
	fi
	@mkdir -p $(DONE) && touch $@

clean:
	rm -rf build *.egg-info vllm/_C*.so .pytest_cache .ruff_cache .mypy_cache
	rm -rf $(DONE)
