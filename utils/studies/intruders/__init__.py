"""Study: intruders."""
