"""A `SequenceNet` where a Linen module is asked for: the encoder of a variational autoencoder over sequences."""

import flax.linen as nn

from genmod.core.types import Array
from genmod.nets.sequence import SequenceNet


class SequenceModule(nn.Module):
    """A causal network of one sequence, (T, features) -> (T, outputs), as a Linen module.

        encoder = gm.nets.SequenceModule(gm.nets.Recurrent(nn.GRUCell(64)))

    Attributes:
      net: any `SequenceNet`; its parameters are those of the module, under "net".
    """

    net: SequenceNet

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.net.apply(self.param("net", lambda key: self.net.init(key, x)), x)
