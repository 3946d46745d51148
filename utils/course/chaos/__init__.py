"""Faults on purpose: kills, damage, bad input, crowds and hostile programs, and whether the course holds.

Each part is a module with ``cases(quick=…)``, which lists what is tried; ``python -m utils chaos`` runs them all and
says which held.
"""
