# Everything runs inside .venv, which the first target makes. Versions are those of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what it imports; compiling every file of every package takes a minute.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
READY := .venv/.ready
TOOLS := .venv/.tools
DOCS := .venv/.docs
OLDEST := .venv-oldest

.PHONY: demo test test-all test-oldest test-cuda lint format docs notebooks benchmark benchmark-evidence benchmark-peers benchmark-rounds benchmark-tuned benchmark-speed tournament tournament-tables clean

demo: $(READY)  ## Compares three methods with the offline model to a verdict, prints the table and draws the ranks.
	@echo "Look at the last column, verdict: is a method better or worse than LoRA, the first, beyond the noise of three seeds?"
	$(BIN)/peftprune compare --task entailment-mini --methods lora,prilora,head-only --budget rank=8 --seeds 3 --epochs 1 \
		--batch-size 16 --max-train-samples 2000 --max-eval-samples 500 --threads 1 --output-dir runs/demo
	@$(BIN)/peftprune report runs/demo --out runs/demo/report.html >/dev/null
	@echo "The table is above, the rank allocations are in runs/demo/ranks.png, and the full report is runs/demo/report.html."

test: $(TOOLS)  ## Runs all tests except the slow ones.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(TOOLS)  ## Runs all tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# constraints-oldest.txt has the lower bounds of pyproject.toml. That of torch stands here, since an index may have another
# build of it for CPUs alone: make test-oldest TORCH_OLDEST=2.13.0
TORCH_OLDEST ?= 2.8

# Old packages use names that their newer dependencies warn about.
test-oldest: $(OLDEST)/.ready  ## Runs the quick tests with the oldest versions that pyproject.toml allows.
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" -W ignore::DeprecationWarning

test-cuda: $(TOOLS)  ## Runs the tests that need a GPU, and writes benchmarks/results/cuda.json.
	$(BIN)/python -m pytest tests/test_cuda.py --results benchmarks/results/cuda.json

lint: $(TOOLS)  ## Checks format, style, types and the direction of imports.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TOOLS)  ## Formats the code and fixes what ruff can fix.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS)  ## Builds the documentation into site/; a dead link stops it.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Look at it, search included: $(BIN)/python -m http.server --directory site"

notebooks: $(TOOLS)  ## Runs the notebooks in order without changing them.
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/run.py

DATA ?= $(PEFTPRUNE_DATA)
FOUR := --methods lora,lorpa,prilora,lora-drop --budget rank=8 --seeds 1
NAMED = $(if $(DATA),,$(error DATA is empty: make $@ DATA=path/to/glue))
# One thread per arm uses few cores best, and results do not depend on other load.
COMPARE := $(BIN)/peftprune compare --threads 1

benchmark: $(READY) benchmark-evidence  ## Compares four methods on GLUE; DATA=path/to/glue. Writes benchmarks/results/.
	$(NAMED)$(BIN)/peftprune compare --task rte --data-dir $(DATA) $(FOUR) --target-modules all-linear --epochs 2 \
		--output-dir runs/benchmark/rte
	$(BIN)/python benchmarks/collect.py runs/benchmark/rte benchmarks/results/rte.json
	$(BIN)/peftprune compare --task mrpc --data-dir $(DATA) $(FOUR) --target-modules attention --epochs 3 \
		--output-dir runs/benchmark/mrpc
	$(BIN)/python benchmarks/collect.py runs/benchmark/mrpc benchmarks/results/mrpc.json

benchmark-evidence: $(READY)  ## Compares five methods on MRPC and CoLA, two seeds; DATA=path/to/glue. About 45 minutes.
	$(NAMED)$(COMPARE) --config benchmarks/mrpc-cola.yaml --data-dir $(DATA) --output-dir runs/benchmark/mrpc-cola
	$(BIN)/python benchmarks/collect.py runs/benchmark/mrpc-cola benchmarks/results/mrpc-cola.json
	$(BIN)/peftprune report runs/benchmark/mrpc-cola

benchmark-peers: $(READY)  ## Compares 27 methods on MRPC with the head alone, two seeds; DATA=path/to/glue. Hours.
	$(NAMED)$(COMPARE) --config benchmarks/mrpc-peers.yaml --data-dir $(DATA) --output-dir runs/benchmark/mrpc-peers
	$(BIN)/python benchmarks/collect.py runs/benchmark/mrpc-peers benchmarks/results/mrpc-peers.json
	$(BIN)/peftprune report runs/benchmark/mrpc-peers
	$(COMPARE) --config benchmarks/mrpc-rates.yaml --data-dir $(DATA) --output-dir runs/benchmark/mrpc-rates
	$(BIN)/python benchmarks/collect.py runs/benchmark/mrpc-rates benchmarks/results/mrpc-rates.json

benchmark-rounds: $(READY)  ## Decides between four methods on MRPC in rounds of seeds; DATA=path/to/glue. Hours.
	$(NAMED)$(COMPARE) --config benchmarks/mrpc-rounds.yaml --data-dir $(DATA) --output-dir runs/benchmark/mrpc-rounds \
		--reuse benchmarks/results/mrpc-rounds
	$(BIN)/python benchmarks/collect.py runs/benchmark/mrpc-rounds benchmarks/results/mrpc-rounds.json
	$(BIN)/peftprune pack runs/benchmark/mrpc-rounds --out benchmarks/results/mrpc-rounds

benchmark-tuned: $(READY)  ## Tunes four methods over five rates on the bundled task. About half an hour.
	$(COMPARE) --config benchmarks/tuned.yaml --output-dir runs/benchmark/tuned
	$(BIN)/python benchmarks/collect.py runs/benchmark/tuned benchmarks/results/tuned.json

benchmark-speed: $(TOOLS)  ## Measures speed by method and size, and compared with a plain script; DATA=path/to/glue. Two idle cores, two hours.
	$(NAMED)$(BIN)/python -m benchmarks.speed all --data-dir $(DATA)
	$(BIN)/python benchmarks/tables.py

tournament: $(READY)  ## Compares methods, each at its own tuned rate; DATA=path/to/glue. Hours; trains only what is missing.
	$(NAMED)$(BIN)/python -m benchmarks.tournament run --data-dir $(DATA)
	$(BIN)/python -m benchmarks.tournament tables

tournament-tables: $(READY)  ## Writes docs/findings.md, its figures and README's table from the stored results.
	$(BIN)/python -m benchmarks.tournament tables

clean:  ## Removes the environment, all runs and the built documentation.
	rm -rf .venv $(OLDEST) runs site

# torch first and at its pinned version, so that no other package pulls in another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) -e ".[offline]"
	touch $(READY)

# In tests a warning is an error, and compiling another package's file may give one: so all are compiled before.
$(TOOLS): $(READY)
	$(INSTALL) -e ".[offline,dev,trl]"
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $(TOOLS)

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt \
		torch==$(TORCH_OLDEST) -e ".[offline,dev]"
	touch $@

$(DOCS): $(READY)
	$(INSTALL) -e ".[offline,docs]"
	touch $(DOCS)
