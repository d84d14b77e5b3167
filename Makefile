# Two commands matter: `make demo` and `make test`. Both begin with `setup`, which does nothing the second time.
.PHONY: setup demo test check clean help

VENV := .venv

help: ## This list.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## Make .venv and install everything into it (repeats only when the requirements change).
	@scripts/setup

demo: setup ## Run the whole loop, twice, with two simulated cameras; prints what it did and where to look.
	@$(VENV)/bin/bowerbird demo $(ARGS)

test: setup ## Run all tests; installs missing Debian packages when root, names them otherwise.
	@scripts/test $(ARGS)

check: setup ## Format, lint, types, tests.
	@scripts/check

clean: ## Remove the environment, caches and what the demo left; keeps data folders that you made.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis bowerbird-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
