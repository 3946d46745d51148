"""Learning against forgetting on causal models: does LoRA learn less than full fine-tuning, and does it forget less?

Notebooks 09 and 10; the runs of notebook 13 are measured here too. Of "LoRA Learns Less and Forgets Less" (arXiv
2405.09673v2): Table 1 and Fig 1 with Tables S1, S3, S5 and S7 (learning), Fig 2 with Tables S2, S4, S6 and S8
(forgetting), Fig 3 (the trade-off), Fig 4 (regularisers), and Figs S4 to S6 with Tables S10 to S13 (Tulu) as published.
Beyond the paper: learning rates as a control, decay towards W0, forgetting against KL ("RL's Razor", arXiv 2509.04259),
and random updates of a trained one's norm.
"""
