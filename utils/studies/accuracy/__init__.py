"""Study: accuracy."""
