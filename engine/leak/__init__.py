"""leak@k of scores: estimators, intervals, bounds. Numpy and scipy only; knows nothing of models, texts or files."""

from engine.leak.estimator import LeakCurve, leak_at_k, leak_curve

__all__ = ["LeakCurve", "leak_at_k", "leak_curve"]
