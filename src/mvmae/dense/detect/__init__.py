"""`mvmae detect`: Mask R-CNN."""
