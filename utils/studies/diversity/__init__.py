"""Study: diversity."""
