"""Weights: on record, fetched, verified, read in every known format, written in others."""
