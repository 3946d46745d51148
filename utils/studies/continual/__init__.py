"""Study: continual."""
