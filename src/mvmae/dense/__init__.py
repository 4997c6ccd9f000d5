"""Detection and segmentation, and what the two share."""
