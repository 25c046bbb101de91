"""Several networks made one: averages, and arithmetic of what training changed."""
