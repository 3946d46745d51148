"""Study: learning."""
