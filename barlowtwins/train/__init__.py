"""What a pretraining run is made of, and what it leaves in its RUN folder."""
