"""One module a verb of the command line. Each has `run(config)`, the whole path in one place."""
