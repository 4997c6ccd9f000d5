"""What decoding image files is made of."""
