# Everything happens in .venv, with the exact versions of constraints.txt.
#   .venv/runtime    stamp: vartok and what it needs to run
#   .venv/installed  stamp: the optional packages and the developers' tools too
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test coverage bench gpu pictures format clean

# Tokenize a photo, draw it again, and show how it builds up over the scales.
demo: .venv/runtime
	$(BIN)/vartok encode examples/coffee.png -o demo/coffee.tokens.npz --force
	$(BIN)/vartok inspect demo/coffee.tokens.npz
	$(BIN)/vartok decode demo/coffee.tokens.npz --force
	$(BIN)/vartok decode demo/coffee.tokens.npz --strip --force
	@echo
	@echo "Look at demo/coffee.decoded.png, and at demo/coffee.strip.png: the picture after 1, 2, ... 10 scales."
	@echo "For \`vartok\` in this shell: . .venv/bin/activate"

# Lint, types, quick tests; where CI is set, the slow tests too. One process a core, of one OpenMP thread: the tests'
# networks are small, and threads that wait for each other would take three times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --dist worksteal
test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) $(if $(CI),,-m "not slow")

coverage: .venv/installed
	$(PYTEST) --cov --cov-branch --cov-report=term-missing --cov-fail-under=95

# Speed, a quarter of an hour on two cores; PICTURES is a folder of photos.
PICTURES ?= examples
bench: .venv/installed
	cd benchmarks && { \
	  echo "# Speed"; echo; echo "Made by \`make bench\`; the last part is written by hand, in NOTES.md."; echo; \
	  ../$(BIN)/python timing.py && ../$(BIN)/python models.py && ../$(BIN)/python program.py $(abspath $(PICTURES)) && \
	  ../$(BIN)/python loader.py 50000 && \
	  cat NOTES.md; } > RESULTS.md.part && mv RESULTS.md.part RESULTS.md && cat RESULTS.md

# Tests and speed on a GPU, eight minutes; in small on a CPU where there is none.
gpu: .venv/installed
	bash benchmarks/gpu.sh build/gpu

# What the README shows.
pictures: .venv/runtime
	$(BIN)/python docs/draw.py

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The path file shows the package to type checkers and editors, which do not see an editable install's finder.
.venv/runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vartok-source.pth"
	@touch $@

.venv/installed: .venv/runtime
	$(INSTALL) '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
