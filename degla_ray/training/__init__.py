"""Training: checkpoints, the loop of one worker, and the Ray Train driver."""
