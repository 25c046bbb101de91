"""Permutation symmetries of networks: found in their traced graphs, searched for the nearest, acted on states."""
