# make demo   sets up .venv and trains four methods on noisy digits: a table and a picture in runs/demo
# make test   sets up .venv and runs the test suite
# make test-oldest   the same in .venv-oldest, with the oldest versions that requirements.txt allows
# make test-oldest-core   of these the tests that lean most on the packages, for CI
# make coverage   the tests once more, and which lines and branches of prl_keras/ they run
.PHONY: demo test test-long test-oldest test-oldest-core coverage lint clean

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 2

demo: $(VENV)/.ready
	$(PY) -m binaries.demo --output_dir=runs/demo --overwrite

# In two halves: a process keeps what TensorFlow compiled for it, and of all the tests that is 14 GB.
test: $(VENV)/.ready
	$(PY) -m pytest -m "not long" -n 2 --dist loadfile tests/[a-n]*_test.py
	$(PY) -m pytest -m "not long" -n 2 --dist loadfile tests/[o-z]*_test.py

test-long: $(VENV)/.ready
	$(PY) -m pytest -n 2 --dist loadfile

test-oldest: $(VENV)-oldest/.ready
	$(VENV)-oldest/bin/python -m pytest -m "not long" -n 2 --dist loadfile tests/[a-n]*_test.py
	$(VENV)-oldest/bin/python -m pytest -m "not long" -n 2 --dist loadfile tests/[o-z]*_test.py

# Steps, scores and rules; saving and logs; the files, tables and searches of keras-tuner, pandas, h5py, TFDS.
CORE := rules scores oracle promises nonfinite saving resume audit tuning_final tune report tfds_datasets
test-oldest-core: $(VENV)-oldest/.ready
	$(VENV)-oldest/bin/python -m pytest -m "not long" -n 2 --dist loadfile $(CORE:%=tests/%_test.py)

coverage: $(VENV)/.ready
	$(PY) -m pytest -m "not long" -k "not full_disk" -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/.ready: requirements.txt requirements-text.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt -r requirements-text.txt
	$(PY) -m pip install --quiet --no-deps -e .
	touch $@

$(VENV)-oldest/.ready: requirements-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-oldest/bin/python -m pip install --quiet -r requirements-oldest.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest runs
