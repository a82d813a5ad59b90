"""Models and their training: all that runs inside the task processes of a trial.

Importing this package is cheap; TensorFlow is imported with the first model that is built.
The package never imports grpc, nhop, coordinator or agent, so that a user's own modules of
these names cannot collide with ours inside a task.
"""

from nhop_models.base import DataError, HyperParameters, NNModel

__all__ = ["DataError", "HyperParameters", "NNModel"]
