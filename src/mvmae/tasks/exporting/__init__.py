"""What exporting is made of: a module a format, and the model card."""
