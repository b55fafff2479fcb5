"""Losses: pure functions of FUNCTIONS (a log_prob, a sampler), usable for models of one's own. All in nats."""

from genmod.core.relaxation import (
    binary_concrete as binary_concrete,
    gumbel_softmax as gumbel_softmax,
    straight_through as straight_through,
)
from genmod.losses.adversarial import (
    HINGE as HINGE,
    LEAST_SQUARES as LEAST_SQUARES,
    MINIMAX as MINIMAX,
    NON_SATURATING as NON_SATURATING,
    WASSERSTEIN as WASSERSTEIN,
    AdversarialLoss as AdversarialLoss,
    critic_loss as critic_loss,
    generator_loss as generator_loss,
    gradient_penalty as gradient_penalty,
    r1_penalty as r1_penalty,
)
from genmod.losses.consistency import consistency_matching as consistency_matching, pseudo_huber as pseudo_huber
from genmod.losses.contrastive import (
    contrast as contrast,
    contrastive_ratio as contrastive_ratio,
    noise_contrastive as noise_contrastive,
)
from genmod.losses.diffusion import BoundParts as BoundParts, denoising as denoising, variational_bound as variational_bound
from genmod.losses.gradient_estimators import (
    GradientStatistics as GradientStatistics,
    MovingAverage as MovingAverage,
    gradient_variance as gradient_variance,
    leave_one_out as leave_one_out,
    reinforce as reinforce,
    reinforce_moving_average as reinforce_moving_average,
    reparameterized as reparameterized,
    score_function_surrogate as score_function_surrogate,
)
from genmod.losses.likelihood import negative_log_likelihood as negative_log_likelihood
from genmod.losses.matching import flow_matching as flow_matching
from genmod.losses.mean_flow import mean_velocity_matching as mean_velocity_matching
from genmod.losses.quantization import (
    Quantized as Quantized,
    code_usage as code_usage,
    nearest_codes as nearest_codes,
    vector_quantization as vector_quantization,
)
from genmod.losses.refinement import (
    GradientSteps as GradientSteps,
    HeldMoves as HeldMoves,
    Refinement as Refinement,
    SemiAmortized as SemiAmortized,
    adam_of_features as adam_of_features,
)
from genmod.losses.reverse import reverse_kl as reverse_kl
from genmod.losses.score import (
    denoising_score_matching as denoising_score_matching,
    explicit_score_matching as explicit_score_matching,
    sliced_score_matching as sliced_score_matching,
)
from genmod.losses.score_function import ScoreFunctionELBO as ScoreFunctionELBO
from genmod.losses.variational import (
    ELBO as ELBO,
    IWAE as IWAE,
    Latent as Latent,
    Objective as Objective,
    Renyi as Renyi,
    importance_bound as importance_bound,
    log_weights as log_weights,
    renyi_bound as renyi_bound,
)
