"""`mvmae segment`: UperNet."""
