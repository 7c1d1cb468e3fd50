"""Exact predictions of theory, and the code that measures what they predict."""

from fokker.theory.jepa import SelfDistillation as SelfDistillation
from fokker.theory.jepa import feature_influence as feature_influence
from fokker.theory.linear import LearningCurve as LearningCurve
from fokker.theory.linear import effective_rank as effective_rank
from fokker.theory.linear import gradient_flow as gradient_flow
