"""Study: update_rank."""
