"""What `data check` is made of."""
