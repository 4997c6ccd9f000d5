"""Commands that score an encoder on labelled images."""
