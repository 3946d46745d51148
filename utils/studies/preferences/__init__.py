"""Preference tuning with today's TRL: what it teaches, what it costs, and what changed since TRL 0.12.

Notebook 16. No figure of the papers: intruders and forgetting after DPO, full fine-tuning against LoRA, are ours.
"""
