"""Everything that a notebook calls around its idea: begin, measure, publish, say what was found, conclude."""

from utils.ledger.exercises import try_out
from utils.ledger.notebook import begin, check, conclude
from utils.ledger.session import measured
from utils.reporting.publish import found, publish

__all__ = ["begin", "check", "conclude", "found", "measured", "publish", "try_out"]
