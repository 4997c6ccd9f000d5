"""Commands that work on images without an encoder."""
