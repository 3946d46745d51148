"""Which runs are wanted, by the names of the experiments that ask for them."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from utils.profiles import Profile
from utils.training.spec import RunSpec, continual_specs, intervention_specs, preference_specs, run_specs

# A profile's sections of runs that are no experiment.
CONTINUAL, INTERVENTION, PREFERENCES = "continual", "intervention", "preferences"
SHOWN = "the main experiments"  # those that the figures over all of them show; the profile says which


def wanted_specs(profile: Profile, names: Iterable[str] = ("*",), seeds: tuple[int, ...] | None = None
                 ) -> dict[str, RunSpec]:
    """The runs of some experiments by their keys; those that others go on from come before them.

    Parameters
    ----------
    profile : Profile
    names : iterable of str
        Of experiments, ``continual``, ``intervention`` or ``preferences``, also as patterns such as ``instruction*``,
        or :data:`SHOWN`. What this profile has not adds nothing.
    seeds : tuple of int, optional
        The profile's own by default.
    """
    patterns = {one for name in names for one in (profile.shown_experiments if name == SHOWN else (name,))}
    found = [spec for group, specs in _groups(profile, seeds).items()
             if any(fnmatchcase(group, pattern) for pattern in patterns) for spec in specs()]
    return {spec.key: spec for spec in found}


def every_spec(profile: Profile, seeds: tuple[int, ...] | None = None) -> dict[str, RunSpec]:
    """Every run that any notebook asks of a profile, by its key."""
    return wanted_specs(profile, seeds=seeds)


def _groups(profile: Profile, seeds: tuple[int, ...] | None) -> dict[str, Callable[[], list[RunSpec]]]:
    """What makes the runs of every group that a profile has, by its name."""
    groups: dict[str, Callable[[], list[RunSpec]]] = {
        name: lambda name=name: run_specs(profile, name, seeds)  # type: ignore[misc]
        for name in (*profile.experiments, *profile.decoder_experiments)}
    groups[INTERVENTION] = lambda: intervention_specs(profile, seeds)
    groups[CONTINUAL] = lambda: [spec for chain in continual_specs(profile, seeds) for spec in chain]
    if profile.preferences:
        groups[PREFERENCES] = lambda: [spec for specs in preference_specs(profile, seeds).values() for spec in specs]
    return groups
