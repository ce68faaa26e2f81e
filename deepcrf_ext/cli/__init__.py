"""What the commands share: parsing, options, and errors as one line with an exit code."""
