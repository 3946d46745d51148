"""What moves the count of intruder dimensions: learning rate, rank, alpha and the update's effective rank, taken apart.

Notebook 05; *Illusion of Equivalence* v3, Figs 7, 14, 19 and 20, with Fig 7's correlations. Ours: ranks at one fixed
rate, alpha at a matched rate, rsLoRA's scaling, and full fine-tuning above its usual rate.
"""
