"""What every other part stands on: descriptions, parameters, events, distributions, and how one event becomes a batch."""
