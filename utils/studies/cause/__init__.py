"""Study: cause."""
