"""Measurements as tidy tables, figures from tables, publishing, claims and their verdicts."""
