"""Who runs the trials of a search or a comparison: this process, or workers of Ray."""
