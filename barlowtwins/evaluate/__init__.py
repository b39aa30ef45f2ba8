"""How good a representation is: kNN and, later beside it, the probes and fine-tuning protocols."""
