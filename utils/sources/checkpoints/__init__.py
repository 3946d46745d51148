"""Checkpoints as people have them: models and PEFT adapters, read one matrix at a time, or refused in one sentence.

``files`` says which files are the checkpoint, ``foreign`` knows other tools' formats by name, ``linear`` and ``stacks``
what is a linear map and which way round it lies, ``quantised`` how fewer bits become numbers, ``model`` and ``adapter``
are what comes out, ``settings`` is an adapter's own configuration, ``names`` says which matrix a name means, and
``architecture`` asks transformers where all this leaves something open. ``opening`` is the way in.
"""

from utils.sources.checkpoints.adapter import Adapter, AdapterMatrix
from utils.sources.checkpoints.files import INDEX, shards
from utils.sources.checkpoints.model import Checkpoint, Entry
from utils.sources.checkpoints.names import match_names
from utils.sources.checkpoints.opening import open_checkpoint
from utils.sources.checkpoints.words import some

__all__ = ["INDEX", "Adapter", "AdapterMatrix", "Checkpoint", "Entry", "match_names", "open_checkpoint", "shards",
           "some"]
