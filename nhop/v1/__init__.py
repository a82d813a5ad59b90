"""Generated from proto/nhop/v1 by `make proto`."""
