"""Study: costs."""
