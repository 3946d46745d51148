"""Study: what_moves."""
