"""The register of measurements: what ``python -m utils reference`` makes, claims judge and notebooks draw as bands."""

from collections.abc import Callable

import pandas as pd

from utils.profiles import Profile
from utils.reporting import causes, costs, generations, geometry, learning, measure, moves, preferences, released, \
    sequence, sharpness, updates, vanilla
from utils.reporting.measure import Seeds


def released_counts(profile: Profile, seeds: Seeds = None) -> pd.DataFrame:
    """Figs 4a-c: counts in the released checkpoints that the profile names; empty where it names none."""
    return released.released_counts(profile)


MEASUREMENTS: dict[str, Callable[[Profile, Seeds], pd.DataFrame]] = {one.__name__: one for one in (
    measure.accuracy_over_steps, measure.intruder_counts, measure.intruder_counts_by_k, measure.intruder_places,
    measure.intruder_growth, measure.random_controls, measure.forgetting, measure.learning_rate_sweep,
    geometry.similarity_summary, geometry.planted_directions, geometry.window_counts, geometry.critical_strengths,
    geometry.trained_strengths, moves.what_moves, moves.sweep_over_steps, moves.alpha_counts,
    moves.alpha_counts_by_k, moves.data_counts, moves.data_counts_by_k, moves.variant_counts, moves.update_ranks,
    causes.interventions, causes.removals, causes.norm_matched,
    sequence.sequence_accuracies, sequence.sequence_summaries, sequence.sequence_spectra, released_counts,
    learning.learning_curves, learning.instruction_curves, learning.regulariser_curves, learning.sensitivity,
    learning.shuffled_answers, learning.norm_controls, generations.diversity, generations.pass_rates,
    generations.token_entropy,
    updates.rank_dynamics, updates.rounding_effects, updates.random_ranks,
    updates.toy_deviations, updates.memory_formulas, vanilla.variant_sweep, sharpness.variant_hessian,
    costs.footprints, costs.compression, costs.evaluation_costs, costs.peft_benchmark,
    preferences.preference_outcomes, preferences.preference_controls, preferences.reward_readings)}
