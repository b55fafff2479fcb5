"""Models, one file per family. `base.Model` is the protocol."""

from genmod.models.base import Model as Model
from genmod.models.dequantized import Dequantized as Dequantized
from genmod.models.diffusion import Bound as Bound, Diffusion as Diffusion
from genmod.models.filtering import Filtering as Filtering, Padded as Padded
from genmod.models.flow import Flow as Flow, Pushforward as Pushforward
from genmod.models.flow_matching import FlowMatching as FlowMatching, Reflow as Reflow
from genmod.models.hierarchical_vae import HierarchicalVAE as HierarchicalVAE, LatentLevel as LatentLevel
from genmod.models.penalized import FunctionKL as FunctionKL, Penalized as Penalized
from genmod.models.score import ScoreModel as ScoreModel
from genmod.models.vae import VAE as VAE, RateDistortion as RateDistortion
from genmod.models.vector_quantized import VQVAE as VQVAE, CodebookReport as CodebookReport
