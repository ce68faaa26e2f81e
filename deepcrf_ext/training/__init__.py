"""Training: data in batches, objectives, optimiser, stages and the loop over them."""
