"""From a path to weights and models: every format of checkpoint, none of which gets code of its own run unasked."""
