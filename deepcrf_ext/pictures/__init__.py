"""Labels and scores as picture files."""
