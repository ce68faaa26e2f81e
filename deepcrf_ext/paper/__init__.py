"""The experiments of the paper and around it: what is run, and the reports about it."""
