"""Tables and figures of the paper, of its own numbers or of yours: see __main__.py."""
