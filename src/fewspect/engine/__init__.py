"""From a composed config to a finished run: the only package that knows Hydra and the Trainer."""
