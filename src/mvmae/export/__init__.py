"""`mvmae export`."""
