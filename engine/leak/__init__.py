"""leak@k of scores: estimators, intervals, bounds. Numpy and scipy only; knows nothing of models, texts or files."""

from engine.leak.curve import LeakCurve, leak_curve
from engine.leak.estimator import leak_at_k

__all__ = ["LeakCurve", "leak_at_k", "leak_curve"]
