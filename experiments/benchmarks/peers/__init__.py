"""One small adapter per library, all measured through `base.Flow` by `worker`."""
