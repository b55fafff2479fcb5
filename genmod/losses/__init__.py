"""Losses: pure functions of FUNCTIONS (a log_prob, a sampler), usable for models of one's own. All in nats."""

from genmod.losses.divergence import reverse_kl as reverse_kl
from genmod.losses.likelihood import negative_log_likelihood as negative_log_likelihood
from genmod.losses.matching import flow_matching as flow_matching
