"""What fine-tuning is made of."""
