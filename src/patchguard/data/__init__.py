"""Images in: files, folders, the synthetic benchmark, foregrounds."""
