"""`mvmae data check`."""
