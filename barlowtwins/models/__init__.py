"""Networks: backbones, the projector, and the training module."""
