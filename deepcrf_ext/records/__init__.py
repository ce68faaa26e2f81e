"""Files of a run: checkpoints, logs, finished steps, and what made them."""
