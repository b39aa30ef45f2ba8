"""Folders of runs and jobs: what lies where, checkpoints, snapshots, guards. It does not know what runs in them."""
