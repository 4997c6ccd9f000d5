"""What the pictures of features are made of: what is looked at, and one file a picture."""
