"""Artifacts in, computation, artifacts out: one file a command."""
