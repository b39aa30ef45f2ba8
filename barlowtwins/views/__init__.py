"""Two distorted views of an image: the numbers, the random draw, and several executors."""
