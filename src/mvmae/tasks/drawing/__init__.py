"""What the verbs that draw images share: which images, what they are called, where it goes."""
