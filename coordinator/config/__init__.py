"""The configuration of a study: reading it, checking it, and writing out how it resolved.

``load`` takes a YAML file, YAML text, a mapping or nothing, and ``KEY=VALUE`` overrides, and
returns a ``StudyConfig``, or raises ConfigError with every problem, its key and its line.
"""

from coordinator.config.study import StudyConfig, load

__all__ = ["StudyConfig", "load"]
