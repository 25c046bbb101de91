"""Permutations that bring one network near another."""
