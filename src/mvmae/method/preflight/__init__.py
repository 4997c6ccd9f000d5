"""Before the first step of pre-training: inferred settings, automatic batch size, dry run."""
