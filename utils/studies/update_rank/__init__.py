"""How many directions an update needs: by matrix, layer and duration, beside noise, rounding and a random update.

Notebook 12. Figures 6, S7 and S8 and Tables S14 to S16 of "LoRA Learns Less and Forgets Less" (arXiv 2405.09673v2);
the Gaussian null, the random update of equal norm and the rounding to bfloat16 are controls of ours.
"""
