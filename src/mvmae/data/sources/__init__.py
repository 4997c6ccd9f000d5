"""Where images come from. Adding a kind of source is adding a file here and a line to `opening`."""
