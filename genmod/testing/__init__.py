"""The public conformance kit: what holds a bijector, a sampler, a likelihood or a score of yours against the truth."""

from genmod.testing.bijection import BijectionReport as BijectionReport, check_bijection as check_bijection
from genmod.testing.density import check_density as check_density
from genmod.testing.diffusion import (
    check_likelihood as check_likelihood,
    check_sampler as check_sampler,
    check_score as check_score,
)
from genmod.testing.laws import COVARIANCE as COVARIANCE, MEAN as MEAN, MEANS as MEANS, VARIANCES as VARIANCES, WEIGHTS as WEIGHTS
from genmod.testing.layers import HealthReport as HealthReport, health as health
from genmod.testing.reports import (
    DensityReport as DensityReport,
    LikelihoodReport as LikelihoodReport,
    SamplerReport as SamplerReport,
    ScoreReport as ScoreReport,
)
