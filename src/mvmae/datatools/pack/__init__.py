"""`mvmae data pack`."""
