# The commands a day needs; `make demo` and `make test` do everything from an empty clone.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
BIN := $(CURDIR)/$(VENV)/bin
# What benchmarks/gpu_suite.py needs beside torch, triton, transformers and what these bring: pure Python, no more needs.
GPU_WHEELS := diffusers==0.42.1 open_clip_torch==3.3.0 ftfy==6.3.1 wcwidth==0.2.13 importlib_metadata==8.7.0
# What the tests of engines/cpp need from Debian or Ubuntu; without it they are skipped, and say so.
CPP_PACKAGES := cmake g++ make nlohmann-json3-dev libutf8proc-dev libpng-dev libjpeg-dev liblcms2-dev doctest-dev \
                libcpp-httplib-dev
PROMPT := an oil painting of a person wearing a blue suit and a crown, at the beach

.PHONY: demo test lint cpp-packages format docs pictures build-wheel gpu-wheels clean

# In a folder of its own, so that nothing of it lies among the source code.
demo: $(VENV)/.demo-installed
	mkdir -p demo
	cd demo && "$(BIN)/infid-export" build --fp16
	cd demo && "$(BIN)/infid-export" evaluate --references world:heldout:3 --prompts world:heldout:4 --stylized 3 -o sheet
	cd demo && "$(BIN)/infid-export" generate "$(PROMPT)" --photo sheet/references/0.png -o picture.png
	"$(BIN)/infid-export" inspect demo/infid-engines
	@echo "contact sheet: demo/sheet/grid.png   picture: demo/picture.png   engines: demo/infid-engines"

test: lint cpp-packages
	"$(BIN)/python" -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev-installed
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

cpp-packages:
	@dpkg --status $(CPP_PACKAGES) >/dev/null 2>&1 || \
	  { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install --yes --no-install-recommends $(CPP_PACKAGES); } || \
	  echo "The tests of the C++ library are skipped, unless you run: sudo apt-get install $(CPP_PACKAGES)"

format: $(VENV)/.dev-installed
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

# The site, in site/. It fails on a dead link, and on anything that a page would load from another host.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict --quiet

# The pictures of README.md and docs/, from the demo and the import contracts.
pictures: demo
	"$(BIN)/python" benchmarks/document_pictures.py sheet demo/sheet/grid.png
	"$(BIN)/python" benchmarks/document_pictures.py layers

build-wheel: $(VENV)/.created
	"$(BIN)/python" -m pip wheel --no-deps --wheel-dir dist .

# For a GPU machine that reaches no package index; benchmarks/README.md says how they are installed there.
gpu-wheels: $(VENV)/.created
	"$(BIN)/python" -m pip download --no-deps --only-binary=:all: --dest gpu-wheels $(GPU_WHEELS)

clean:
	rm -rf demo dist gpu-wheels site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# The stamps say what is installed; a changed pyproject.toml installs again.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo-installed: pyproject.toml $(VENV)/.created
	"$(BIN)/python" -m pip install -e ".[demo]"
	touch $@

$(VENV)/.dev-installed: pyproject.toml $(VENV)/.created
	"$(BIN)/python" -m pip install -e ".[dev]"
	touch $@ $(VENV)/.demo-installed

$(VENV)/.docs-installed: pyproject.toml $(VENV)/.created
	"$(BIN)/python" -m pip install -e ".[docs]"
	touch $@
