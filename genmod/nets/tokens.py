"""`token_net`: a sequence network from tokens to the logits of the next one."""

import flax.linen as nn

from genmod.core.checks import check_count
from genmod.nets.sequence import Pointwise, SequenceNet, Stack


def token_net(
    body: SequenceNet, num_inputs: int, num_outputs: int, *, num_features: int = 64, conditional: bool = False
) -> Stack:
    """An embedding, `body`, and a linear layer that starts at zero.

    Args:
      body: any sequence network of features, (T, num_features) -> (T, outputs).
      num_inputs: how many tokens there are; num_outputs: numbers for each step.
      num_features: of the embedding.
      conditional: whether the tokens come one-hot, with more numbers beside them, (T, features); the embedding is then linear.

    Raises ValueError for counts that are no integers >= 1, TypeError for a body that is no SequenceNet.
    """
    check_count(num_inputs=num_inputs, num_outputs=num_outputs, num_features=num_features)
    embed = nn.Dense(num_features) if conditional else nn.Embed(num_inputs, num_features)
    return Stack((Pointwise(embed), body, Pointwise(nn.Dense(num_outputs, kernel_init=nn.initializers.zeros))))
