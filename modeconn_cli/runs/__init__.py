"""Run directories: written, found again, and where they come from."""
