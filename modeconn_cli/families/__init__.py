"""Families of points in weight space: coefficients times control points."""
