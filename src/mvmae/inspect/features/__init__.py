"""`mvmae features`."""
