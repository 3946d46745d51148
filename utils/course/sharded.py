"""``train-sharded``: runs that are bigger than a card, each by several processes that hold its model together."""

import os

from utils.errors import UsageError


def train_sharded(options) -> int:
    """Train runs over several GPUs (or cores); as one of the processes if a launcher has started this one."""
    from utils.profiles import load_profile

    profile = load_profile(options.profile)
    from utils.course.doctor import require
    from utils.machine import set_up_process
    from utils.profiles.used import remember
    from utils.training.sharded import most_processes
    from utils.training.together import check, join, launched, train_together

    require(profile)
    set_up_process()
    seeds = tuple(options.seeds) if options.seeds else None
    if options.reference:
        profile, seeds = profile.with_reference_runs(), seeds or profile.reference_seeds
    specs = chosen(profile, seeds, options.run_keys)
    if launched():
        check(specs, int(os.environ["LOCAL_WORLD_SIZE"]), of=int(os.environ["WORLD_SIZE"]))
        return join(specs)
    remember(profile, seeds or profile.seeds)
    train_together(specs, options.processes or most_processes())
    print(f"{len(specs)} {'run is' if len(specs) == 1 else 'runs are'} in the store.")
    return 0


def chosen(profile, seeds: tuple[int, ...] | None, keys: list[str]) -> list:
    """The specifications of a profile's runs that keys name, or the beginnings of keys."""
    from utils.training.wanted import every_spec

    known = every_spec(profile, seeds)
    found = []
    for key in keys:
        named = [spec for whole, spec in known.items() if whole.startswith(key)]
        if len(named) != 1:
            raise UsageError(f"Expected the key of one run of profile {profile.profile}, but {len(named) or 'none'} "
                             f"of {len(known)} begins with '{key}'; `train --dry-run` lists them, with --seeds and "
                             "--reference as here.")
        found += named
    return found
