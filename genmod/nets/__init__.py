"""Networks: the only folder that imports Flax. Any Linen module can stand where a network is asked for."""

from genmod.nets.causal import CausalConv as CausalConv, CausalTransformer as CausalTransformer
from genmod.nets.circle import OnCircle as OnCircle
from genmod.nets.conv import GatedAttentionNet as GatedAttentionNet, GlowNet as GlowNet, ResNet as ResNet
from genmod.nets.functional import apply as apply, init as init
from genmod.nets.lattice import (
    LatticeVelocity as LatticeVelocity,
    PeriodicConv as PeriodicConv,
    PeriodicNet as PeriodicNet,
    SignSymmetric as SignSymmetric,
)
from genmod.nets.made import MADE as MADE
from genmod.nets.mean_velocity import MeanVelocity as MeanVelocity
from genmod.nets.mlp import MLP as MLP, FlatNet as FlatNet, ZeroHead as ZeroHead
from genmod.nets.nnx_module import NNXModule as NNXModule
from genmod.nets.pixel import GatedPixelCNN as GatedPixelCNN
from genmod.nets.positions import (
    LearnedPositions as LearnedPositions,
    Positions as Positions,
    RotaryPositions as RotaryPositions,
)
from genmod.nets.pyramid import ConvDecoder as ConvDecoder, ConvEncoder as ConvEncoder
from genmod.nets.sequence import Pointwise as Pointwise, Recurrent as Recurrent, SequenceNet as SequenceNet, Stack as Stack
from genmod.nets.sequence_module import SequenceModule as SequenceModule
from genmod.nets.spectral import (
    SpectralNorm as SpectralNorm,
    largest_singular_value as largest_singular_value,
    spectral_state as spectral_state,
    spectrally_normalized as spectrally_normalized,
)
from genmod.nets.tokens import token_net as token_net
from genmod.nets.unet import UNet as UNet
from genmod.nets.velocity import Guided as Guided, Scaled as Scaled, VelocityMLP as VelocityMLP, check_guidance as check_guidance
