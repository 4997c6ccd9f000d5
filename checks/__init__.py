"""Checks of this repository that no common tool offers. Run by `make check`."""
