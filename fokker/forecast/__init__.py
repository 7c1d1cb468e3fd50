"""Forecasts of fields: surrogates that step a state forward, and what is measured of their rollouts."""

from fokker.forecast.refiner import PDERefiner as PDERefiner
from fokker.forecast.refiner import RefinerDenoiser as RefinerDenoiser
from fokker.forecast.refiner import RefinerLoss as RefinerLoss
from fokker.forecast.rollout import band_error as band_error
from fokker.forecast.rollout import correlation as correlation
from fokker.forecast.rollout import correlation_time as correlation_time
