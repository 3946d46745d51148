"""From a folder or a Hub name to a model or an adapter, whichever lies there."""

from dataclasses import replace
from pathlib import Path

from utils.errors import UsageError
from utils.sources.checkpoints.adapter import Adapter, open_adapter
from utils.sources.checkpoints.files import ADAPTER_CONFIG, folders_with_weights, has_adapter, has_model
from utils.sources.checkpoints.model import Checkpoint, open_model
from utils.sources.checkpoints.words import some


def open_checkpoint(source: str, *, revision: str | None = None, allow_pickle: bool = False,
                    adapter: str | None = None) -> Checkpoint | Adapter:
    """A model or adapter, from a folder or from the Hub.

    Parameters
    ----------
    source : str
        A folder as ``save_pretrained`` writes it, or a Hub name such as ``"FacebookAI/roberta-base"``.
    revision : str, optional
        A branch, tag or commit on the Hub; a folder has none.
    allow_pickle : bool
        Read ``.bin`` files where there are no safetensors, by torch's restricted loader (``weights_only=True``).
    adapter : str, optional
        Which of several adapters: the name of a folder below, or the name inside the tensors' names.

    Raises
    ------
    UsageError
        If it is out of reach, damaged, a pickle without leave, quantised in a way that cannot be undone, another tool's
        format, or an adapter of another kind than LoRA.
    """
    folder = _folder(source, revision, allow_pickle)
    if adapter is not None and adapter != "default" and (folder / adapter / ADAPTER_CONFIG).is_file() \
            and Path(adapter).name == adapter:
        folder, adapter = folder / adapter, None
    if (folder / ADAPTER_CONFIG).exists():
        return _adapter_or_merged(source, folder, adapter=adapter, allow_pickle=allow_pickle)
    below = [name for name in folders_with_weights(folder, depth=1) if (folder / name / ADAPTER_CONFIG).exists()]
    if adapter is not None:
        raise UsageError(f"{source} holds no adapter called '{adapter}'; it has {some(below)}.")
    if has_adapter(folder) and not has_model(folder):
        raise UsageError(f"{source} holds an adapter's weights without {ADAPTER_CONFIG}, which says how its factors "
                         "are scaled; copy that file too.")
    if below and not has_model(folder) and not any(name.startswith("checkpoint-") for name in below):
        raise UsageError(f"{source} holds no weights of its own, but the adapters {some(below)}; choose one with "
                         f"--adapter {below[0]}.")
    model = open_model(source, folder, allow_pickle)
    if has_adapter(folder):
        return _noted(model, f"{source} holds a whole model and an adapter's weights without {ADAPTER_CONFIG}; the "
                             "model was read.")
    return model


def _adapter_or_merged(source: str, folder: Path, *, adapter: str | None, allow_pickle: bool) -> Checkpoint | Adapter:
    """An adapter, or a whole model beside which an adapter's configuration was left; what was not read is noted."""
    if has_model(folder) and not has_adapter(folder):
        model = open_model(source, folder, allow_pickle)
        return _noted(model, f"{ADAPTER_CONFIG} lies beside the weights of {source}, but no adapter does: they are "
                             "taken for those of a merged model.")
    opened = open_adapter(source, folder, adapter=adapter, allow_pickle=allow_pickle)
    if has_model(folder):
        return _noted(opened, f"{source} holds an adapter and a whole model; the adapter was read.")
    return opened


def _noted(opened: Checkpoint | Adapter, note: str) -> Checkpoint | Adapter:
    return replace(opened, notes=(*opened.notes, note))


def _folder(source: str, revision: str | None, allow_pickle: bool) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{source} is a file; give the folder that holds the model or adapter.")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UsageError(f"There is no folder {source}, and it is not a Hub name of the form owner/name either.")
    from utils.sources import hub

    return hub.checkpoint_snapshot(source, revision=revision, allow_pickle=allow_pickle)
