# make demo       sets up .venv and writes demo/*.mp4 with the bundled model
# make test       sets up .venv and runs what every commit must pass: ruff, pyright and the fast tests
# make test-all   runs everything, as CI does: the slow tests and the demo, too
# make docs       builds the documentation into build/site; open build/site/index.html
# make site-demo  writes site-demo/, a page that animates pictures in the browser, for any static host; needs npm
# make audit      compares constraints.txt with the known vulnerabilities; needs the internet
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadfile --no-loadscope-reorder

.PHONY: demo docs site-demo test test-all lint typecheck audit clean

demo: .venv/installed
	$(BIN)/lfdm demo --out demo

test: .venv/installed-dev lint typecheck
	$(PYTEST) -m "not slow"

test-all: .venv/installed-dev lint typecheck
	$(PYTEST)
	$(BIN)/lfdm demo --out demo

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/installed-dev
	$(BIN)/pyright

# torch comes first and pinned: left to the resolver, a newer build with gigabytes of CUDA libraries could be chosen
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

.venv/installed-dev: .venv/installed benchmarks/requirements.txt
	$(PIP) -e ".[text,train,eval,web,heif,render,scale,onnx,docs,dev]"
	$(PIP) --no-deps -r benchmarks/requirements.txt
	touch $@

DEMO := web/static-demo
MODULES := $(DEMO)/node_modules

site-demo: .venv/installed-dev
	npm ci --prefix $(DEMO) --ignore-scripts --no-audit --no-fund
	$(BIN)/lfdm export --model puppets64 --dtype float16 --out site-demo/model
	mkdir -p site-demo/images
	cp $(DEMO)/*.html $(DEMO)/*.js $(DEMO)/*.css site-demo
	cp $(MODULES)/onnxruntime-web/dist/ort.wasm.min.mjs $(MODULES)/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs site-demo
	cp $(MODULES)/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm $(MODULES)/gifenc/dist/gifenc.esm.js site-demo
	cp src/lfdm/assets/puppets64/images/*.png site-demo/images

audit: .venv-audit/installed
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit==2.10.1
	touch $@

clean:
	rm -rf .venv .venv-audit demo site-demo $(MODULES)
