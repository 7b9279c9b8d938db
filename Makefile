# make quickstart: embedded data, a meta-trained model, the commands to use it.   make test: what CI runs.   make slow: the tests that take long.
# make lowest: the fast tests with the lowest versions of all dependencies (constraints-lowest.txt), with distmeta installed as a wheel, in .venv-lowest.
# make cluster-test: follow docs/kubernetes.md on this machine (Linux, root, kubectl, PostgreSQL).
# make bench: every comparison that docs/results.md repeats, in at most 40 minutes after the installation.
# make release: build the version that pyproject.toml names, try it in an empty environment, and tag it.
# Each sets up .venv by itself. TORCH_INDEX=URL takes torch from another wheel index (a CPU or CUDA build).

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/ready
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install quickstart test slow lowest cluster-test bench lint docs release clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "distmeta needs Python 3.11 or newer; set PYTHON=python3.x"; exit 1; }
	@echo "Setting up .venv: about 140 packages, 0.5 GB to download and 2 GB on disk with a CPU build of torch, several GB more with a CUDA build."
	@echo "torch comes from $(if $(TORCH_INDEX),$(TORCH_INDEX),pip's own index; TORCH_INDEX=URL chooses another build)."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

data/glyphs/manifest.json: | $(READY)
	$(BIN)/distmeta pack --dataset glyphs --out data/glyphs

quickstart: $(READY) data/glyphs/manifest.json
	@$(BIN)/distmeta train configs/quickstart.yaml --resume

test: $(READY) lint
	$(BIN)/pytest -n logical --dist loadfile

slow: $(READY)
	$(BIN)/pytest -m slow

lowest: $(READY)
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt '.[dev]'
	PATH="$(CURDIR)/.venv-lowest/bin:$$PATH" pytest -n logical --dist loadfile

cluster-test: $(READY)
	$(BIN)/pytest -m slow tests/test_cluster_chain.py

bench: $(READY) data/glyphs/manifest.json
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tests/bench/everything.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy distmeta tests/bench
	$(BIN)/codespell distmeta docs tests configs cluster *.md *.cff

docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

release: $(READY)
	@test -z "$$(git status --porcelain)" || { echo "the working tree has changes; commit them first"; exit 1; }
	@grep -q '^## $(VERSION)' CHANGELOG.md || { echo "CHANGELOG.md has no section '## $(VERSION)'; give its first section that title"; exit 1; }
	@! git rev-parse -q --verify refs/tags/v$(VERSION) > /dev/null || { echo "v$(VERSION) is tagged already; raise version in pyproject.toml"; exit 1; }
	$(MAKE) test
	rm -rf dist
	$(BIN)/pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build
	.ci/wheel dist/*.whl
	git tag --annotate v$(VERSION) --message "distmeta $(VERSION)"
	@echo "next: git push origin v$(VERSION), then upload dist/* to the package index"

clean:
	rm -rf .venv .venv-lowest
