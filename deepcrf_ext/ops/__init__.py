"""The operators: torch.library registrations over the compiled extension, one file an operator."""
