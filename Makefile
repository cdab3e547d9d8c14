# Every target starts from nothing but Python and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := out/demo
# Waiting threads must not spin: on a busy machine they would make small graphs ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE
# Extras that .venv gets.
EXTRAS ?= all
PROMPT ?= a large red circle on the left, white background
# Docstrings, comments, messages and pages.
PROSE := md_export docs examples recipes .github Makefile $(wildcard *.md)

.PHONY: demo test tests quick lint words coverage dist docs notebook bench gpu-driver kotlin-compiler npu-simulator contact-sheet mil-conformance clean

demo: $(READY)
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/md-export coreml --fp16 -o $(DEMO)/coreml
	$(BIN)/md-export tflite --int8 -o $(DEMO)/tflite
	$(BIN)/md-export onnx --int8 -o $(DEMO)/onnx
	$(BIN)/md-export generate "$(PROMPT)" -o $(DEMO)/torch.png
	$(BIN)/md-export generate "$(PROMPT)" --artifacts $(DEMO)/coreml -o $(DEMO)/coreml.png
	$(BIN)/md-export generate "$(PROMPT)" --artifacts $(DEMO)/tflite -o $(DEMO)/tflite.png
	$(BIN)/md-export generate "$(PROMPT)" --artifacts $(DEMO)/onnx -o $(DEMO)/onnx.png
	$(BIN)/md-export report $(DEMO)/coreml $(DEMO)/tflite $(DEMO)/onnx -o $(DEMO)/report.html
	@echo "Pictures of \"$(PROMPT)\": $(DEMO)/{torch,coreml,tflite,onnx}.png; all golden cases: $(DEMO)/report.html"

test: lint tests

# All tests, or those of some folders and files: make tests AREA="models test_imports.py".
tests: $(READY)
	$(BIN)/pytest --numprocesses 2 --dist worksteal $(AREA:%=tests/%)

# The tests of one area in under two minutes: make quick AREA=rewrites (a folder of tests/); all areas without AREA.
quick: $(READY)
	$(BIN)/pytest -m "not slow" $(AREA:%=tests/%)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(MAKE) --silent words

# Misspelled words, and the phrases of .ci/words (phrase->what to write instead) wherever a line has one whole.
words: $(READY)
	$(BIN)/codespell --regex "(?i)\b(?:(?:$$(sed 's/->.*//' .ci/words | paste -sd'|' -))(?!\w)|[\w'’-]+)" $(PROSE)

# Lines and branches that the fast tests of two layers reach; below the floor in pyproject.toml it fails.
coverage: $(READY)
	$(BIN)/coverage run -m pytest -m "not slow" tests/mil tests/spec
	$(BIN)/coverage report

# Wheel and source archive, checked as an index would and for what a wheel must not hold.
dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# The documentation as a site that opens from disk: site/index.html. Every warning is an error.
docs: $(READY)
	$(BIN)/pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# docs/tutorial.ipynb in a kernel of Jupyter.
notebook: $(READY)
	$(BIN)/pip install --quiet --group docs
	$(BIN)/python benchmarks/documented.py docs/tutorial.ipynb

# Slow, and run by hand: full-size conversions, quality of the nano checkpoint, pictures for the docs.
bench: $(READY)
	cd golden/nano && $(CURDIR)/$(BIN)/python -m training.evaluate
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/coreml.py
	$(BIN)/python benchmarks/tflite.py --gpu
	$(BIN)/python benchmarks/onnx_export.py
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/kill.py
	$(BIN)/python benchmarks/paper.py
	$(BIN)/python benchmarks/estimate.py
	$(BIN)/pip install --quiet --group docs
	$(BIN)/python benchmarks/documented.py

# The op tests that ship inside coremltools, against our runtime of ML programs; hours. Shard with ARGS="--shard 1/16".
mil-conformance: $(READY)
	$(BIN)/python tests/mil/conformance.py $(ARGS)

# A Vulkan driver in software for `md-export verify --gpu`, out of Debian's Chromium; root where apt's lists are stale.
gpu-driver:
	.ci/gpu-driver

# Kotlin's compiler, for the tests of examples/android; needs npm and Java.
kotlin-compiler:
	.ci/kotlin-compiler

# Qualcomm's compiler for Snapdragon NPUs and its simulator, for `md-export verify --npu`; under its own licence.
npu-simulator: $(READY)
	$(BIN)/pip install --quiet --editable ".[qnn]"

contact-sheet: $(READY)
	$(BIN)/python benchmarks/contact_sheet.py docs/contact-sheet.png

clean:
	rm -rf .venv out dist build site

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --editable ".[$(EXTRAS)]" --group dev
	@# Pre-releases for Linux x86-64 with glibc 2.34 and Macs; elsewhere its tests are skipped, and say so.
	-$(BIN)/pip install --quiet --editable ".[coreai]"
	touch $@
