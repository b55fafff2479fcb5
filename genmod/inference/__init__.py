"""Inference: posteriors and evidence of any log-density, and of models with latent variables."""

from genmod.inference.annealing import AIS as AIS, SMC as SMC, Bracket as Bracket, ReverseAIS as ReverseAIS, bracket as bracket
from genmod.inference.black_box import (
    PosteriorFit as PosteriorFit,
    PosteriorReport as PosteriorReport,
    ReverseKL as ReverseKL,
    fit_posterior as fit_posterior,
    posterior_report as posterior_report,
)
from genmod.inference.closed import (
    BIC as BIC,
    Enumeration as Enumeration,
    ExactEvidence as ExactEvidence,
    LaplaceEvidence as LaplaceEvidence,
)
from genmod.inference.conjugate import regression_map as regression_map
from genmod.inference.discrepancies import (
    KL as KL,
    ChiSquare as ChiSquare,
    ClosedForm as ClosedForm,
    CrossEntropy as CrossEntropy,
    Discrepancy as Discrepancy,
    DiscrepancyKind as DiscrepancyKind,
    JensenShannon as JensenShannon,
    RenyiDivergence as RenyiDivergence,
    Wasserstein as Wasserstein,
    discrepancy as discrepancy,
    entropy as entropy,
)
from genmod.inference.efficiency import CramerRao as CramerRao, cramer_rao as cramer_rao
from genmod.inference.estimate import (
    BayesFactor as BayesFactor,
    Estimate as Estimate,
    Evidence as Evidence,
    EvidenceMethod as EvidenceMethod,
    Observed as Observed,
    Problem as Problem,
    bayes_factor as bayes_factor,
    bayesian as bayesian,
    evidence as evidence,
    simulate as simulate,
    target as target,
)
from genmod.inference.fisher import (
    FisherInformation as FisherInformation,
    empirical_fisher as empirical_fisher,
    fisher_by_curvature as fisher_by_curvature,
    fisher_information as fisher_information,
    observed_information as observed_information,
)
from genmod.inference.gap import GapReport as GapReport, gap_report as gap_report, refine as refine, refine_one as refine_one
from genmod.inference.health import (
    PosteriorHealth as PosteriorHealth,
    PosteriorValidation as PosteriorValidation,
    posterior_health as posterior_health,
)
from genmod.inference.importance import (
    HarmonicMean as HarmonicMean,
    ImportanceSampling as ImportanceSampling,
    MeanBound as MeanBound,
)
from genmod.inference.laplace import (
    LaplaceApproximation as LaplaceApproximation,
    Mode as Mode,
    find_mode as find_mode,
    laplace_approximation as laplace_approximation,
)
from genmod.inference.likelihood import (
    PointEstimate as PointEstimate,
    WaldInterval as WaldInterval,
    maximize_likelihood as maximize_likelihood,
    maximize_posterior as maximize_posterior,
    wald_interval as wald_interval,
)
from genmod.inference.mean_field import (
    MixtureFit as MixtureFit,
    MixtureLaw as MixtureLaw,
    fit_mixture as fit_mixture,
    mixture_prior as mixture_prior,
)
from genmod.inference.nodes import (
    Enumerated as Enumerated,
    ExpectationMethod as ExpectationMethod,
    Law as Law,
    MonteCarlo as MonteCarlo,
    Nodes as Nodes,
    Quadrature as Quadrature,
)
from genmod.inference.partition import (
    annealed_draws as annealed_draws,
    annealed_log_prob as annealed_log_prob,
    normalizer_bracket as normalizer_bracket,
)
from genmod.inference.predictive import MixturePredictive as MixturePredictive
from genmod.inference.rate_distortion import (
    RateDistortionCurve as RateDistortionCurve,
    rate_distortion_curve as rate_distortion_curve,
)
from genmod.inference.stein import (
    RBF as RBF,
    InverseMultiquadric as InverseMultiquadric,
    KernelFunction as KernelFunction,
    RadialKernel as RadialKernel,
    SteinFit as SteinFit,
    SteinKernel as SteinKernel,
    stein_direction as stein_direction,
    svgd as svgd,
)
from genmod.inference.svi import (
    NaturalGradientStep as NaturalGradientStep,
    SVIState as SVIState,
    fit_mixture_stochastic as fit_mixture_stochastic,
    robbins_monro as robbins_monro,
)
from genmod.inference.table import ExactTable as ExactTable, SampleComparison as SampleComparison, exact as exact
from genmod.samplers.weights import LogMean as LogMean, log_mean as log_mean, pareto_k_hat as pareto_k_hat
