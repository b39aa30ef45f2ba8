"""The networks: backbones, projector, and the module that trains the two together."""
