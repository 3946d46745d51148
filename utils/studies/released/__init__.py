"""Study: released."""
