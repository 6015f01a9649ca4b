"""Training: batch order and resume, one worker's loop, Ray Train around it."""
