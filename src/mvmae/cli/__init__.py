"""The command line: from arguments to one command with its checked options."""
