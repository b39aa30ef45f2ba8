"""Two distorted views of an image: one recipe of numbers, one drawing, several executors."""
