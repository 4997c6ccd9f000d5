"""What commands leave on disk: run folders, metrics, results, outputs."""
