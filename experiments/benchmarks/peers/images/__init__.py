"""One small adapter per library for Glow on images, all measured through `peers.base.Flow` by `worker`."""
