"""One experiment: settings, environments, agents, training, playing, and what a run leaves behind."""
