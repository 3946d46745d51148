"""Is any of nine improvements of LoRA better than LoRA once each has its own learning rate? Notebook 14.

After "Learning Rate Matters: Vanilla LoRA May Suffice" (arXiv 2602.04998v2): its Figure C2 (accuracy against the
learning rate, ten methods each at its best), Figure C3 (the largest Hessian eigenvalue at each method's start) and its
practical heuristics (best rate against rank, batch size and samples). Ours: rsLoRA, LoRA+, PEFT's LoRA-GA and full
fine-tuning beside them, the gradient's share in the Hessian, AdamW's coordinates, and the first paper's intruder count.
"""
