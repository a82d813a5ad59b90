"""The commands as a user runs them."""

from tests.e2e.conftest import commands

__all__ = ["commands"]
