"""Study: forgetting."""
