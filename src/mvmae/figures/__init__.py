"""Drawing functions shared by several commands."""
