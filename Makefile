# `make test` and `make lint` set up what they need; the environment is the one that run_all.sh uses.
.PHONY: install test lint format smoke

PYTHON_WITH_TOOLS = python=$$(bash set_up.sh test lint) && PYTHONPATH="$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH}" "$$python"

install:
	bash run_all.sh --setup-only

test:
	$(PYTHON_WITH_TOOLS) -m pytest

lint:
	$(PYTHON_WITH_TOOLS) -m ruff check .
	$(PYTHON_WITH_TOOLS) -m ruff format --check .

format:
	$(PYTHON_WITH_TOOLS) -m ruff check --fix .
	$(PYTHON_WITH_TOOLS) -m ruff format .

smoke:
	bash run_all.sh --smoke
