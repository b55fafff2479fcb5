"""How far the draws of a sampler are from the law of its denoiser, by schedule, stepper and grid.

python -m experiments.sampler_table

The denoiser is exact, of a Gaussian and of a mixture of Gaussians, so that all error is the sampler's: `gm.check_sampler`. Each
cell is the largest error of an entry of the covariance, in standard errors of `num_draws` draws, at about `num_evaluations`
evaluations of the denoiser; about 2 is chance. The default of `gm.flows.diffusion` was chosen by this table.
"""

import dataclasses
from typing import Any

import genmod as gm
from genmod import denoising


@dataclasses.dataclass(frozen=True)
class Config:
    num_evaluations: int = 60
    """A last one, which denoises, comes on top."""
    num_draws: int = 20_000


SCHEDULES = {
    "VP": denoising.VariancePreserving(),
    "cosine": denoising.Cosine(),
    "EDM": denoising.EDM(),
    "VE": denoising.VarianceExploding(0.01, 50.0),
    "straight": denoising.Straight(),
}
STEPPERS = {"DDIM": denoising.DDIM(), "Heun": denoising.Heun(), "DPM-Solver++": denoising.DPMSolverPlusPlus()}
GRIDS = {"uniform": denoising.UniformGrid, "log-SNR": denoising.LogSNRGrid, "EDM": denoising.EDMGrid}


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    metrics: dict[str, Any] = {"model": "sampler_table"}
    rows = []
    for stepper_name, stepper in STEPPERS.items():
        num = config.num_evaluations // stepper.num_evaluations
        for grid_name, grid in GRIDS.items():
            row = {"stepper, grid": f"{stepper_name}, {grid_name}"}
            for schedule_name, schedule in SCHEDULES.items():
                report = gm.check_sampler(
                    lambda n, stepper=stepper, grid=grid: denoising.Steps(stepper, grid(n)),
                    schedule,
                    num_steps=(num // 2, num),
                    num_draws=config.num_draws,
                    denoised=True,
                )
                metrics[f"{stepper_name}_{grid_name}_{schedule_name}_covariance_error"] = report.covariance_error
                row[schedule_name] = f"{report.covariance_error:.1f}"
            rows.append(row)
    print(gm.lab.text_table(rows))
    return metrics


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_draws": 2_000})
