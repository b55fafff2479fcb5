"""Sampler kernels in BlackJAX's form, the driver of any such kernel, samplers by independent draws, and diagnostics."""

from genmod.samplers.adapted import (
    TemperedPopulation as TemperedPopulation,
    adapted_chains as adapted_chains,
    adaptive_tempered_smc as adaptive_tempered_smc,
    window_adapted as window_adapted,
)
from genmod.samplers.adapters import (
    Proposal as Proposal,
    log_prob_fn_of as log_prob_fn_of,
    proposal_of as proposal_of,
    pulled_back as pulled_back,
)
from genmod.samplers.annealed import (
    Annealed as Annealed,
    Population as Population,
    annealed_importance as annealed_importance,
    geometric_bridge as geometric_bridge,
    reverse_annealed_importance as reverse_annealed_importance,
    sequence_bridge as sequence_bridge,
    sequential_monte_carlo as sequential_monte_carlo,
    sigmoid_levels as sigmoid_levels,
)
from genmod.samplers.base import Kernel as Kernel
from genmod.samplers.blocks import (
    GibbsInfo as GibbsInfo,
    GibbsState as GibbsState,
    gibbs as gibbs,
    random_scan_gibbs as random_scan_gibbs,
)
from genmod.samplers.diagnostics import (
    ChainReport as ChainReport,
    autocorrelation as autocorrelation,
    bulk_ess as bulk_ess,
    chain_report as chain_report,
    folded_r_hat as folded_r_hat,
    geyer_autocorrelation_time as geyer_autocorrelation_time,
    mean_ess as mean_ess,
    monte_carlo_standard_error as monte_carlo_standard_error,
    r_hat as r_hat,
    sokal_autocorrelation_time as sokal_autocorrelation_time,
    tail_ess as tail_ess,
)
from genmod.samplers.diffusions import (
    LangevinInfo as LangevinInfo,
    LangevinState as LangevinState,
    MalaState as MalaState,
    annealed_langevin as annealed_langevin,
    langevin as langevin,
    langevin_chain as langevin_chain,
    langevin_step as langevin_step,
    mala as mala,
    score_langevin as score_langevin,
)
from genmod.samplers.driver import Trace as Trace, moved as moved, run as run
from genmod.samplers.ensemble import (
    EnsembleState as EnsembleState,
    differential_evolution as differential_evolution,
    ensemble_tempered as ensemble_tempered,
)
from genmod.samplers.hamiltonian import HMCInfo as HMCInfo, HMCState as HMCState, hmc as hmc, leapfrog as leapfrog
from genmod.samplers.importance import (
    Expectation as Expectation,
    ImportanceReport as ImportanceReport,
    WeightedDraws as WeightedDraws,
    importance_mean as importance_mean,
    importance_report as importance_report,
    importance_sample as importance_sample,
    self_normalized_mean as self_normalized_mean,
)
from genmod.samplers.metropolis import (
    IndependenceState as IndependenceState,
    MetropolisInfo as MetropolisInfo,
    RandomWalkState as RandomWalkState,
    accept as accept,
    independence as independence,
    random_walk as random_walk,
)
from genmod.samplers.ratios import (
    Calibration as Calibration,
    calibration_z as calibration_z,
    platt_calibration as platt_calibration,
    relative_proposal as relative_proposal,
    shifted_acceptance as shifted_acceptance,
)
from genmod.samplers.rejection import (
    Rejection as Rejection,
    empirical_supremum_rejection as empirical_supremum_rejection,
    find_log_bound as find_log_bound,
    rejection_sample as rejection_sample,
)
from genmod.samplers.resampling import (
    Resampled as Resampled,
    gumbel_top_k as gumbel_top_k,
    multinomial_resampling as multinomial_resampling,
    sampling_importance_resampling as sampling_importance_resampling,
    stratified_resampling as stratified_resampling,
    systematic_resampling as systematic_resampling,
)
from genmod.samplers.tempering import (
    TemperingInfo as TemperingInfo,
    TemperingState as TemperingState,
    parallel_tempering as parallel_tempering,
)
from genmod.samplers.weights import (
    LogMean as LogMean,
    SmoothedWeights as SmoothedWeights,
    log_mean as log_mean,
    pareto_k_hat as pareto_k_hat,
    pareto_smoothed as pareto_smoothed,
)
