"""How much each method depends on its settings: learning rate, optimiser, alpha, modules, batch size and scaling.

Notebook 13. Figures S1, S2, S3 and 7 and section 4.7 of "LoRA Learns Less and Forgets Less" (arXiv 2405.09673v2), and
on the same runs what "LoRA Without Regret" (Schulman, Thinking Machines, 2025) says of rates, ranks and batches. The
runs are measured by :func:`utils.studies.learning.measure.sensitivity`.
"""
