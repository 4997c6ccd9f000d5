"""COCO files and segmentation masks, read and checked."""
