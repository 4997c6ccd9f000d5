"""`mvmae ablate`."""
