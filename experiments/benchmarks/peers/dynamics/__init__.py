"""One small adapter per library for continuous flows and flow matching, all measured through `base.Dynamics` by `worker`."""
