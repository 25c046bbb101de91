"""Tasks: data and an objective, with the columns that a network is scored in."""
