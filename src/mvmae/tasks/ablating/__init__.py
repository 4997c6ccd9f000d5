"""What `mvmae ablate` is made of."""
