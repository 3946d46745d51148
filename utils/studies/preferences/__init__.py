"""Study: preferences."""
