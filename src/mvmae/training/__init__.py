"""One training kit for every command: loop, checkpoints, optimisers, processes."""
