"""What a trained CRF has learnt and why it labels as it does, computed and drawn."""
