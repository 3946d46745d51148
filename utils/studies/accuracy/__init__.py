"""Accuracy: what LoRA and full fine-tuning reach on a task, and what LoRA is before anything is trained.

Notebooks 00 (the base model), 01 (LoRA from scratch) and 02 (fine-tuning); *Illusion of Equivalence* v3, Tables 1 and
2, section 2 and appendix E. The first step against the rank is ours.
"""
