"""Learning from weights that were trained on something else: features, their cache, plans of fine-tuning."""
