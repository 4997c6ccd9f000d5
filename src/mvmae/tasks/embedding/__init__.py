"""What embedding is made of: parts, files, the search."""
