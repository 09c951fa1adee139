# `make test` and `make lint` set up what they need; the environment is the one that run_all.sh uses.
.PHONY: install test lint format smoke docs install-bench bench bench-quick bench-accuracy

PYTHON_WITH_TOOLS = python=$$(bash set_up.sh parts test lint) && PYTHONPATH="$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH}" "$$python"

install:
	bash run_all.sh --setup-only

test:
	OMP_NUM_THREADS=1; export OMP_NUM_THREADS; $(PYTHON_WITH_TOOLS) -m pytest -n 2 --dist worksteal

lint:
	$(PYTHON_WITH_TOOLS) -m ruff check .
	$(PYTHON_WITH_TOOLS) -m ruff format --check .

format:
	$(PYTHON_WITH_TOOLS) -m ruff check --fix .
	$(PYTHON_WITH_TOOLS) -m ruff format .

smoke:
	bash run_all.sh --smoke

# docs/api/index.html, of the docstrings; a page needs the packages that its module imports
docs:
	python=$$(bash set_up.sh parts app export docs) && "$$python" docs/build_api.py

# open-metric-learning needs an older numpy than ours
install-bench:
	bash set_up.sh parts test lint bench
	python=$$(bash set_up.sh parts test lint bench) && "$$python" -m venv .venv-oml
	.venv-oml/bin/pip install --quiet --disable-pip-version-check open-metric-learning==4.0.0 omegaconf torch==2.13.0 torchvision==0.28.0

BENCHMARKS = retrieval_metrics reranking image_pipeline losses train_step end_to_end
BENCH_PYTHON = python=$$(bash set_up.sh parts test lint bench)

bench:
	$(BENCH_PYTHON) && for name in $(BENCHMARKS); do "$$python" benchmarks/bench_$$name.py || exit; done

# hours of one core; what is there is not run again
bench-accuracy:
	$(BENCH_PYTHON) && "$$python" benchmarks/bench_accuracy.py

# two at a time: whether they run is the question, not how fast
bench-quick:
	$(BENCH_PYTHON) && printf '%s\n' accuracy $(BENCHMARKS) | xargs -P 2 -I NAME "$$python" benchmarks/bench_NAME.py --quick
