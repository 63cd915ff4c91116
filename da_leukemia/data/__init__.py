"""From files on disk to batches: readers, splits, views and DataModules."""
