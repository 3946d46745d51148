"""Study: variants."""
