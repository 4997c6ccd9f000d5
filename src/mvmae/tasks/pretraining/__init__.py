"""What pre-training says of itself."""
