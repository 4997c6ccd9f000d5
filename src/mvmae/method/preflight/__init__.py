"""What happens before the first step: inferred settings, batch size, dry run."""
