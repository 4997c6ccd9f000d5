"""`mvmae explore`."""
