"""Files that commands write: run folders, metrics, results, outputs."""
