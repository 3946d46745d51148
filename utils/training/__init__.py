"""A run's specification, the methods, transformers' Trainer and TRL, and the run store."""
