"""What a prediction is, one kind per file: NumPy only, validated when made, in pixels of the original image."""
