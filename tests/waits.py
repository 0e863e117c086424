"""How long tests wait for what is sure to come: far longer than the slowest machine takes."""

PATIENT_SECONDS = 900.0
"""Longest wait for another process."""
