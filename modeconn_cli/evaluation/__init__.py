"""Points of weight space in, scores out."""
