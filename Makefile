.PHONY: install test slow check

install:
	pip install -e ".[test]"

test:
	pytest

slow:
	pytest -m slow

check:
	ruff check .
	ruff format --check .
	mypy
