"""The library under the course, in rooms.

Imports go one way, ``course -> ledger -> studies -> reporting -> evaluation -> spectra, training -> sources ->
profiles``; a notebook imports from here and nothing else of ours.
"""

import os
import warnings

# Must be set before transformers, TRL or tokenizers are imported anywhere: the tokenizer's own threads
# dead-lock in forked workers, and TRL prints a notice for each experimental module.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Notebook outputs are committed and read: a notice about a missing widget is noise, with a path of one machine in it.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
