# Two commands matter: `make demo` and `make test`. Both begin with `setup`, which does nothing the second time.
.PHONY: setup demo test faults attacks fuzz check install-test release clean help

VENV := .venv

help: ## This list.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Make .venv and install everything into it (repeats only when the requirements change).
	@scripts/setup

demo: setup ## Run the whole loop, twice, with two simulated cameras; prints what it did and where to look.
	@$(VENV)/bin/bowerbird demo $(ARGS)

test: setup ## Run all tests; installs missing Debian packages when root, names them otherwise.
	@scripts/test $(ARGS)

attacks: setup ## Run the attacks of docs/attacks.md and the code with its checks left out (ten minutes; all but the slowest are in `test`).
	@scripts/test -m attack $(ARGS)

fuzz: setup ## Fuzz every parser of foreign bytes for a minute each; ARGS='--seconds 600 onnx' for longer, or one.
	@cd tests && OMP_NUM_THREADS=1 PYTHONPATH=. ../$(VENV)/bin/python -m bowerbird_testing.fuzz $(or $(ARGS),--seconds 60)

faults: setup ## Run every row of the fault table (docs/faults.md), each checked by a separate program.
	@scripts/test tests/faults -m fault_row --fault-rows all $(ARGS)

check: setup ## Format, lint, types, tests.
	@scripts/check

install-test: setup ## Install into a bare Debian, and boot one (root, debootstrap, systemd-container; ten minutes; not part of `test`).
	@scripts/test -m chroot -n 0 tests/deploy $(ARGS)

release: ## Wheel, source, install archive, bill of materials and checksums of the last commit, in dist/.
	@scripts/release $(ARGS)

clean: ## Remove the environment, caches and what the demo left; keeps data folders that you made.
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis bowerbird-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
