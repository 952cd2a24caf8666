"""Who listens to a run, one per file."""
