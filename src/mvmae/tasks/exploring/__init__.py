"""What `mvmae explore` is made of: what is computed, what is kept, and the page."""
