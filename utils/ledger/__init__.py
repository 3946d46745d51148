"""The ledger: claims, verdicts, the reference results and the page. Importing it imports every study."""

from utils.studies import load_studies

load_studies()
