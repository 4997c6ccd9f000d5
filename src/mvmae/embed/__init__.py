"""`mvmae embed`."""
