# make demo and make test need Python 3.10+ and a C++17 compiler, nothing else: they make a virtual
# environment in $(VENV) and do nothing twice.
PYTHON ?= python3
VENV   ?= .venv
# The PyTorch to install. The extra index has its small CPU builds; TORCH_ARGS= leaves it out, and
# TORCH= keeps whatever $(VENV) holds (or lets pip choose).
TORCH      ?= torch==2.13.0
TORCH_ARGS ?= --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu
# What to install: this tree, or a wheel.
PACKAGE ?= .
EXTRAS  ?= train,test
# Processes of the tests, and whatever else pytest is to be told.
JOBS        ?= auto
PYTEST_ARGS ?=
DEMO_ARGS   ?=
DIST        ?= dist
# Versions of PyTorch for check-torch: built and tried; and compiled against only.
TORCHES       ?= 2.11.0 2.14.1
TORCH_HEADERS ?= 2.12.0
CLANG         ?= clang++

BIN  := $(VENV)/bin
# The targets for developers use the active virtual environment if there is one.
DEV  := $(or $(VIRTUAL_ENV),$(VENV))
CODE := build_backend kanerva_ext kanerva_command.py tests benchmarks docs examples scripts tools setup.py
CODE := $(wildcard $(CODE))
CXX_CODE = $(shell find csrc $(wildcard tools) \
             -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py pyproject.toml kanerva_command.py $(shell find build_backend csrc kanerva_ext -type f \
             -not -path '*/__pycache__/*' -not -name '*.so')
# Processes start where a test file lies whole: its trained models are made once.
PYTEST := $(BIN)/pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)
RETENTION := retention_arguments retention_gradients retention_segments retention_small retention_steps
# The tests of the operators, which other kernels than the CPU's are put to as well.
OPERATOR_TESTS := $(patsubst kanerva_ext/ops/%,tests/operators/test_%,$(wildcard kanerva_ext/ops/[a-z]*.py)) \
  $(patsubst %,tests/operators/test_%.py,causal_scan_packed retention $(RETENTION))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: demo info test test-slow test-all test-triton test-ptx check-clang check-torch check-kernels check-triton check-floors check-installed \
  docs develop lint format bench sdist wheel dist clean help

help:
	@echo 'make demo     a Kanerva Machine on Omniglot: pictures in seconds, then training'
	@echo 'make test     install and run the tests, in minutes; make test-all runs every one of them'
	@echo 'make info     what is installed, what runs here'
	@echo 'make develop  build in place, again after every change to csrc (incremental)'
	@echo 'make docs     the manual, into build/site/index.html'
	@echo 'make lint | format | bench | sdist | wheel | clean'
	@echo 'The operators on other kernels:'
	@echo '  make test-triton        the Triton kernels, in the interpreter'
	@echo '  make test-ptx           the CUDA kernels as PTX, in the interpreter of tools/ptx'
	@echo 'Other compilers and libraries:'
	@echo '  make check-kernels      nvcc for every GPU: what docs/kernels.md says holds, no spills'
	@echo '  make check-triton       Triton for every GPU'
	@echo '  make check-clang        the C++ sources with $(CLANG)'
	@echo '  make check-torch        builds under PyTorch $(TORCHES)'
	@echo '  make check-floors       no slower than a floor, against PyTorch in the same run'

demo: $(VENV)/.installed
	$(BIN)/kanerva demo $(DEMO_ARGS)

info: $(VENV)/.installed
	$(BIN)/kanerva info

test: $(VENV)/.installed
	$(PYTEST) -m 'not slow and not exhaustive' --ignore tests/ptx --ignore tests/build/test_notebooks.py

test-slow: $(VENV)/.installed
	$(PYTEST) -m 'slow or exhaustive' --ignore tests/ptx --ignore tests/build/test_notebooks.py

test-all: test test-slow
	$(PYTEST) tests/ptx
	KANERVA_TEST_MINUTES=10 $(PYTEST) --dist load tests/operators/test_state_machines.py

# What an engine cannot afford is marked where the tests are: see tests/selection.py.
test-triton: $(VENV)/.installed
	TRITON_INTERPRET=1 KANERVA_BACKEND=triton $(PYTEST) $(OPERATOR_TESTS) \
	  $(addprefix tests/operators/,test_triton.py test_state_machines.py)

# The CUDA kernels as the PTX that nvcc makes of them, in the interpreter of tools/ptx: its own tests,
# every kernel plain and without one of its barriers, the operators' tests on one architecture, and
# with teams of blocks for every memory on another, a few shapes on all. Needs nvcc.
PTX_LIBRARY := $(CURDIR)/build/ptx/library.so
ON_PTX = KANERVA_TEST_LIBRARY=$(PTX_LIBRARY) KANERVA_PTX=$(CURDIR)/build/ptx
test-ptx: $(VENV)/.installed
	KANERVA_TEST_PTX=1 $(PYTEST) tests/ptx
	$(BIN)/python scripts/kernels_on_ptx.py --library $(PTX_LIBRARY)
	$(ON_PTX)/sm_90a $(PYTEST) $(OPERATOR_TESTS)
	$(BIN)/python scripts/kernels_on_ptx.py --run --arch sm_80
	$(BIN)/python scripts/kernels_on_ptx.py --run --arch sm_120
	$(ON_PTX)/sm_120 KANERVA_TEAM_WORK=0 KANERVA_PTX_PROCESSORS=6 $(PYTEST) $(OPERATOR_TESTS)

check-kernels: $(VENV)/.installed
	$(BIN)/python scripts/kernel_report.py --check

check-triton: $(VENV)/.installed
	$(BIN)/python scripts/triton_report.py --check --quick

# By another compiler, with every access and operation checked, into a folder of its own, which goes
# before what is installed. Left out for their price: null pointers, alignment.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=null,alignment,pointer-overflow \
  -fno-sanitize-recover=all -shared-libasan
check-clang: $(VENV)/.installed
	rm -rf build/clang
	$(BIN)/python -m pip install --quiet setuptools pybind11 ninja
	CXX=$(CLANG) CXXFLAGS='-Werror -O2 -g1 $(SANITIZERS)' LDFLAGS='$(SANITIZERS)' KANERVA_CUDA=0 \
	  $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --target build/clang .
	LD_PRELOAD=$$($(CLANG) -print-file-name=libclang_rt.asan-x86_64.so) \
	  ASAN_OPTIONS=detect_leaks=0 KANERVA_TEST_SANITIZED=1 PYTHONPATH=$(CURDIR)/build/clang \
	  $(PYTEST) -m 'not slow and not exhaustive' $(OPERATOR_TESTS)

check-torch: $(VENV)/.installed
	$(BIN)/python scripts/check_torch.py $(TORCHES) --headers $(TORCH_HEADERS) --rehearse

# One shape; the floors of CI hold on any machine.
check-floors: $(VENV)/.installed
	$(BIN)/python -m benchmarks.compare --floors ci --check --seconds 0.5 --patience 5 \
	  --shapes 16x32x32x100 --op bayes_write --op solve_addresses --op recall \
	  --op adaptive_write --op forget --op causal_scan

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kanerva_ext needs Python 3.10 or later, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.python
	$(if $(TORCH),$(BIN)/python -m pip install $(TORCH_ARGS) '$(TORCH)')
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install '$(PACKAGE)[$(EXTRAS)]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install '$(PACKAGE)[docs]'
	@touch $@

# Editable install once, then only what changed is compiled.
develop: $(if $(VIRTUAL_ENV),,$(VENV)/.dev)
	@$(DEV)/bin/python -I -c 'import importlib.metadata as m, sys; sys.exit("\"editable\": true" not in (m.distribution("kanerva_ext").read_text("direct_url.json") or ""))' 2>/dev/null \
	  || { rm -f $(DEV)/.installed && $(DEV)/bin/python -m pip install --no-build-isolation --no-deps -e . ; }
	@$(DEV)/bin/python setup.py --quiet build_ext --inplace

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install setuptools pybind11 ninja
	$(BIN)/python -m pip install --no-build-isolation -e '.[train,test,benchmark,dev]'
	@touch $@

# Without a warning, without a dead link, and with every example run.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python scripts/check_site.py build/site
	$(PYTEST) -m 'not slow' tests/build/test_documents.py tests/build/test_notebooks.py

lint:
	$(DEV)/bin/ruff check $(CODE)
	$(DEV)/bin/ruff format --check $(CODE)
	$(DEV)/bin/clang-format --dry-run --Werror $(CXX_CODE)

format:
	$(DEV)/bin/ruff check --fix $(CODE)
	$(DEV)/bin/ruff format $(CODE)
	$(DEV)/bin/clang-format -i $(CXX_CODE)

bench: $(if $(VIRTUAL_ENV),,$(VENV)/.dev)
	$(DEV)/bin/pytest benchmarks $(PYTEST_ARGS)

sdist:
	$(DEV)/bin/python -m build --sdist --outdir $(DIST) .

wheel:
	$(DEV)/bin/python -m pip wheel --no-deps -w $(DIST) .

# The wheel from the sdist, isolated, beside the one torch that is there: no second one is fetched.
dist: $(VENV)/.torch
	$(BIN)/python scripts/check_dist.py --out $(DIST)

# The command line of what is installed, away from the source tree.
check-installed: $(VENV)/.installed
	rm -rf build/installed && mkdir -p build/installed
	cd build/installed && $(abspath $(BIN))/kanerva info
	cd build/installed && $(abspath $(BIN))/kanerva train cpu-omniglot-kanerva --out run \
	  --set training.steps=20 && $(abspath $(BIN))/kanerva evaluate run

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find kanerva_ext -name '*.so' -delete
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# All phases of benchmarks/gpu_check.py on a machine without a GPU, with a PyTorch for CUDA in an
# environment of its own (4.7 GB). Needs nvcc; takes most of an hour on two cores.
REHEARSAL_VENV ?= .venv-cuda
REHEARSAL_OUT  ?= build/rehearsal
.PHONY: rehearse-gpu
rehearse-gpu: $(REHEARSAL_VENV)/.installed
	$(REHEARSAL_VENV)/bin/python benchmarks/gpu_check.py rehearse --out $(REHEARSAL_OUT) --seconds 7200

$(REHEARSAL_VENV)/.installed:
	$(PYTHON) -m venv $(REHEARSAL_VENV)
	$(REHEARSAL_VENV)/bin/python -m pip install torch==2.11.0 numpy pytest hypothesis pybind11 ninja 'setuptools>=77,<82'
	@touch $@
