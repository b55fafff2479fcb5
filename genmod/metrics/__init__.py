"""Metrics: arrays in, a value and its standard error out.

Those of two samples stand in `gm.evaluate(metrics=(...))` as they are, or as `gm.call(metric, setting=...)`.
"""

from genmod.core.statistics import Measured as Measured, mean_and_sem as mean_and_sem, ratio_and_sem as ratio_and_sem
from genmod.metrics.bits import (
    bits_per_dim as bits_per_dim,
    bits_per_token as bits_per_token,
    nats_per_token as nats_per_token,
    perplexity as perplexity,
)
from genmod.metrics.calibration import (
    Uniformity as Uniformity,
    calibration_ranks as calibration_ranks,
    credible_coverage as credible_coverage,
    rank_uniformity as rank_uniformity,
)
from genmod.metrics.correlated import (
    BinningErrors as BinningErrors,
    GammaEstimate as GammaEstimate,
    JackknifeEstimate as JackknifeEstimate,
    binning_errors as binning_errors,
    gamma_method as gamma_method,
    jackknife as jackknife,
)
from genmod.metrics.criteria import aic as aic, bic as bic
from genmod.metrics.discrepancies import (
    cmmd as cmmd,
    energy_distance as energy_distance,
    kid as kid,
    kid_of_subsets as kid_of_subsets,
    mmd_p_value as mmd_p_value,
    squared_mmd as squared_mmd,
)
from genmod.metrics.distances import wasserstein as wasserstein
from genmod.metrics.entropic_distance import sinkhorn_divergence as sinkhorn_divergence
from genmod.metrics.frechet import (
    extrapolated_frechet_distance as extrapolated_frechet_distance,
    frechet_distance as frechet_distance,
    frechet_distance_of_moments as frechet_distance_of_moments,
    frechet_interval as frechet_interval,
)
from genmod.metrics.identifiability import (
    MatchedCorrelation as MatchedCorrelation,
    mean_canonical_correlation as mean_canonical_correlation,
    mean_correlation as mean_correlation,
)
from genmod.metrics.inception import inception_score as inception_score
from genmod.metrics.kernels import (
    EnergyKernel as EnergyKernel,
    GaussianKernel as GaussianKernel,
    LaplacianKernel as LaplacianKernel,
    MultiquadricKernel as MultiquadricKernel,
    PairKernel as PairKernel,
    PolynomialKernel as PolynomialKernel,
    RadialPairKernel as RadialPairKernel,
    SmoothPairKernel as SmoothPairKernel,
    SumKernel as SumKernel,
)
from genmod.metrics.lattice import (
    binder_cumulant as binder_cumulant,
    effective_mass as effective_mass,
    field_moment as field_moment,
    ising_energy as ising_energy,
    lattice_observables as lattice_observables,
    magnetization as magnetization,
    pole_mass as pole_mass,
    susceptibility as susceptibility,
    zero_momentum_correlator as zero_momentum_correlator,
)
from genmod.metrics.modes import mode_coverage as mode_coverage
from genmod.metrics.neighbors import (
    density_coverage as density_coverage,
    expected_coverage as expected_coverage,
    precision_recall as precision_recall,
)
from genmod.metrics.roc import auroc as auroc, roc_curve as roc_curve
from genmod.metrics.sliced import max_sliced_wasserstein as max_sliced_wasserstein, sliced_wasserstein as sliced_wasserstein
from genmod.metrics.stein import squared_stein_discrepancy as squared_stein_discrepancy
from genmod.metrics.two_sample import c2st as c2st
