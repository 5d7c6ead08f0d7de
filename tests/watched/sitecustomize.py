"""Python imports this at its start where a test has this folder in its PYTHONPATH."""

from tests.steps import install

install()
