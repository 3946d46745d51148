"""What tuned models write: does full fine-tuning make generations alike, and does LoRA keep more of the base's variety?

Notebook 11. Of "LoRA Learns Less and Forgets Less" (arXiv 2405.09673v2): Fig 5 (unique strings among passing and among
failing generations) and Fig S9 (pass@k). Beyond the paper: counts at equal numbers, distinct-n, self-BLEU, and the
entropy of the next token.
"""
