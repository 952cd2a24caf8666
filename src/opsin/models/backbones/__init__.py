"""Networks that also give feature pyramids: `forward_pyramid(images)` and `feature_info`."""
