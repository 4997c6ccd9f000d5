"""The parts of `mvmae detect`."""
