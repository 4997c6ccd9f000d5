"""`mvmae report`."""
