# Two commands do everything on a machine with python3 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo families test fuzz bench docs wheel lint clean

demo: .venv/ready  ## set up, then show how the embedded model routes a sentence
	$(BIN)/grokscope trace "The moon is bright. 床前明月光 def moon(): return 42"
	@echo 'next: $(BIN)/grokscope lab, the notebooks; make test'

families: .venv/ready  ## the list of every family for all of them, not for one, and a layer of Grok-1 and of Grok-2 at their true sizes (15 minutes)
	GROKSCOPE_FAMILIES=all $(BIN)/python -m pytest -n 2 tests/test_every_family.py tests/checkpoints/test_true_shapes.py tests/checkpoints/test_true_shapes_grok2.py

test: .venv/ready  ## set up, then run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

fuzz: .venv/ready  ## damaged files against every reader, and work that is killed, 200 and 100 times (15 minutes)
	$(BIN)/python -m tests.fuzz
	$(BIN)/python -m tests.kill

bench: .venv/ready  ## the speed of this machine, as ratios against floors and peers
	$(BIN)/python tests/bench/forward.py

docs: .venv/ready  ## the site in site/: pages, notebooks, the reference of the API; warnings and dead links are errors (a minute)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[docs]' || $(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m tests.site

wheel: .venv/ready  ## build the wheel, install it in a clean environment, run demo, tour and lab from there (some minutes)
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m tests.wheel

lint: .venv/ready
	$(BIN)/ruff check grokscope tests

# uv installs the pinned versions in seconds; where it cannot be had, pip does it alone.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv \
	  && $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv
