"""Attacks on a finished model: does what was unlearned stay forgotten? leak@k and utility after each one."""
