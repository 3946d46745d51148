"""What full fine-tuning and LoRA cost in parameters, memory, time and money, and what compression does: notebook 15.

Ours beside "LoRA Learns Less and Forgets Less" (arXiv 2405.09673v2, Figure S10: memory and throughput on eight GPUs)
and PEFT's public benchmark ``method_comparison/MetaMathQA``: memory by formula and measured, a calculator, quantised
and pruned weights by the first paper's count of intruder dimensions, and what worked examples cost an evaluation.
"""
