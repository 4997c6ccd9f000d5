"""Commands that show what an encoder or a run looks like."""
