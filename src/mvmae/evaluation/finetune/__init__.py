"""`mvmae finetune`."""
