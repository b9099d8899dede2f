# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet

.PHONY: demo test lint format wheel clean

demo: $(VENV)/.demo
	mkdir -p demo
	$(BIN)/infid-export build --fp16
	$(BIN)/python -c "import skimage.data, PIL.Image; PIL.Image.fromarray(skimage.data.astronaut()).save('demo/photo.png')"
	$(BIN)/infid-export enroll demo/photo.png -o demo/person.safetensors
	$(BIN)/infid-export generate "an oil painting of a person in the rain" --person demo/person.safetensors -o demo/picture.png
	$(BIN)/infid-export inspect engines

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev
	$(PIP) build
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) demo dist

$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	touch $@
