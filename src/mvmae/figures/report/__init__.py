"""Pages that explain themselves: one HTML file with its style, charts and pictures in it."""
