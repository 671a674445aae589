# make demo      sets up .venv and trains four methods on noisy digits: a table and a picture in runs/demo
# make test      sets up .venv and runs the tests of every day
# make help      lists the rest
.PHONY: help demo docs test test-long test-oldest test-oldest-core coverage mutants lint faults build-file lock clean

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
OLDEST := .venv-oldest/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 2

# A process keeps all that TensorFlow compiled for it, so each part of the tests has processes of its own.
PARTS := models,epsilon,keras_gaps,promises,inputs,rules,methods_test.py,corruption_test.py,stopping_test.py,tuning \
	scores,auditing,reports,label_audit,experiments,faults,project
# All the tests leave more behind.
test-long: PARTS := models,epsilon,keras_gaps promises,inputs,rules \
	scores,auditing,reports,label_audit,methods_test.py,corruption_test.py,stopping_test.py \
	experiments tuning,faults,project
# $(call parts,PYTHON,OPTIONS) runs all the parts, and fails if one of them does.
parts = failed=0; for part in $(PARTS); do \
	$(1) -m pytest $(2) -n 2 --dist worksteal $$(echo ,$$part | sed 's:,: tests/:g') || failed=1; \
	done; exit $$failed

help:
	@sed -n 's/^#: //p' Makefile

#: make demo              four methods on digits of which half carry a wrong label
demo: $(VENV)/.ready
	$(PY) -m binaries.demo --output_dir=runs/demo --overwrite

#: make test              the tests of every day
test: $(VENV)/.ready
	@$(call parts,$(PY),-m "not long")

#: make test-long         all tests, those that guard a rarity too
test-long: $(VENV)/.ready
	@$(call parts,$(PY))

#: make test-oldest       the tests of every day with the oldest packages that requirements.txt allows
test-oldest: $(VENV)-oldest/.ready
	@$(call parts,$(OLDEST),-m "not long")

#: make test-oldest-core  those of them that lean most on the packages
CORE := rules scores/scores_test.py promises/oracle_test.py promises/promises_test.py promises/saving_test.py \
	promises/resume_test.py inputs/nonfinite_test.py auditing/table_test.py auditing/record_test.py \
	tuning/final_test.py experiments/paper/report_test.py experiments/data/tfds_test.py
test-oldest-core: $(VENV)-oldest/.ready
	$(OLDEST) -m pytest -m "not long" -n 2 --dist worksteal $(CORE:%=tests/%)

#: make coverage          the tests of every day, and the lines and branches of prl_keras/ that they run
coverage: $(VENV)/.ready
	$(VENV)/bin/coverage erase
	@$(call parts,$(PY),-m "not long" -k "not full_disk" --cov --cov-append --cov-report=)
	$(VENV)/bin/coverage report

#: make mutants           changes rules and scores one by one, and counts the changes that no test notices
mutants: $(VENV)/.ready  # in a copy, since cosmic-ray writes into the files
	$(PY) -m pip install --quiet cosmic-ray==8.7.0
	test -d runs/mutants || git clone --quiet . runs/mutants
	cd runs/mutants && PATH=$(CURDIR)/$(VENV)/bin:$$PATH && export PYTHONPATH=. && \
		{ test -f all.sqlite || { cosmic-ray init cosmic-ray.toml all.sqlite && \
		cr-filter-operators all.sqlite cosmic-ray.toml; } } && \
		cosmic-ray exec cosmic-ray.toml all.sqlite && cr-report all.sqlite | tail -3

#: make lint              ruff, and mypy on prl_keras/
lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

#: make docs              the documentation, in site/index.html
docs: $(VENV)-docs/.ready  # --quiet would hide warnings, and so let them pass
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build

#: make faults            writes the tests' names into docs/faults.md
faults: $(VENV)/.ready
	$(PY) tests/helpers/fault_marks.py

#: make build-file        writes the imports of every Python file into BUILD
build-file: $(VENV)/.ready
	$(PY) tests/helpers/build_file.py

#: make lock              requirements_lock.txt for Bazel: the versions of all packages in .venv
lock: $(VENV)/.ready
	$(PY) -m pip freeze --exclude-editable > requirements_lock.txt

$(VENV)/.ready: requirements.txt requirements-text.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt -r requirements-text.txt
	$(PY) -m pip install --quiet --no-deps -e .
	touch $@

$(VENV)-oldest/.ready: requirements-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(OLDEST) -m pip install --quiet --upgrade pip
	$(OLDEST) -m pip install --quiet -r requirements-oldest.txt
	$(OLDEST) -m pip install --quiet --no-deps -e .
	touch $@

$(VENV)-docs/.ready: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-docs runs site
