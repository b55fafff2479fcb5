"""The public kit that holds samplers, likelihoods and scores of diffusions against closed forms: see `kit`."""

from genmod.conformance.kit import (
    LikelihoodReport as LikelihoodReport,
    SamplerReport as SamplerReport,
    ScoreReport as ScoreReport,
    check_likelihood as check_likelihood,
    check_sampler as check_sampler,
    check_score as check_score,
)
from genmod.conformance.laws import (
    COVARIANCE as COVARIANCE,
    MEAN as MEAN,
    MEANS as MEANS,
    VARIANCES as VARIANCES,
    WEIGHTS as WEIGHTS,
)
