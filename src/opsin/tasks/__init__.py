"""One task per file, named by the verb a person types."""
