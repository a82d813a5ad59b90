"""The files that a study leaves for people and programs, beside the store."""

from coordinator.report.results import write_results

__all__ = ["write_results"]
