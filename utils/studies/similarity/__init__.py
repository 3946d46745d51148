"""Study: similarity."""
