"""The parts of `mvmae segment`."""
