"""Training: `fit` for models, `train` for any step, and what a run leaves behind."""

from genmod.training.checkpoint import load as load, save as save
from genmod.training.contrastive import (
    Chains as Chains,
    ContrastiveState as ContrastiveState,
    ContrastiveStep as ContrastiveStep,
    DataChains as DataChains,
    FreshChains as FreshChains,
    PersistentChains as PersistentChains,
    TemperedChains as TemperedChains,
)
from genmod.training.em import EMFit as EMFit, fit_em as fit_em
from genmod.training.ensemble import fit_ensemble as fit_ensemble
from genmod.training.fitting import fit as fit
from genmod.training.games import (
    GameState as GameState,
    GameStep as GameStep,
    Player as Player,
    alternating as alternating,
    extragradient as extragradient,
    simultaneous as simultaneous,
)
from genmod.training.loop import Fit as Fit, train as train
from genmod.training.replay import ReplayChains as ReplayChains
from genmod.training.step import (
    GradientState as GradientState,
    GradientStep as GradientStep,
    Step as Step,
    apply_gradients as apply_gradients,
    clip as clip,
    ema as ema,
)
from genmod.training.validation import FinalLoss as FinalLoss, Whole as Whole
