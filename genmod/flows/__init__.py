"""The published flows: builders that choose parts and return a Model with `.bijector` and `.base`."""

from genmod.flows.autoencoder import (
    hierarchical_autoencoder as hierarchical_autoencoder,
    variational_autoencoder as variational_autoencoder,
    vector_quantized_autoencoder as vector_quantized_autoencoder,
)
from genmod.flows.continuous import diffusion as diffusion, ffjord as ffjord, flow_matching as flow_matching
from genmod.flows.image import dequantizer as dequantizer, glow as glow, real_nvp_image as real_nvp_image
from genmod.flows.latents import interpolate as interpolate, multi_scale as multi_scale, resample as resample
from genmod.flows.lattice import lattice_coupling_flow as lattice_coupling_flow, lattice_ode as lattice_ode
from genmod.flows.one_step import (
    consistency as consistency,
    consistency_distillation as consistency_distillation,
    mean_flow as mean_flow,
)
from genmod.flows.posteriors import (
    amortized_posterior as amortized_posterior,
    coupling_layer as coupling_layer,
    full_gaussian_posterior as full_gaussian_posterior,
    iaf_layer as iaf_layer,
)
from genmod.flows.stable import stable_real_nvp as stable_real_nvp
from genmod.flows.support import Circle as Circle
from genmod.flows.vector import (
    affine as affine,
    autoregressive_spline_flow as autoregressive_spline_flow,
    glow_1d as glow_1d,
    inverse_autoregressive_flow as inverse_autoregressive_flow,
    masked_autoregressive_flow as masked_autoregressive_flow,
    neural_autoregressive_flow as neural_autoregressive_flow,
    neural_spline_flow as neural_spline_flow,
    nice as nice,
    planar_flow as planar_flow,
    radial_flow as radial_flow,
    real_nvp as real_nvp,
    sylvester_flow as sylvester_flow,
)
