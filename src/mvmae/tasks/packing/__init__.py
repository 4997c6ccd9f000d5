"""What `data pack` is made of."""
